"""`python -m wnrepro`: the command line."""

from wnrepro.cli import main

main()
