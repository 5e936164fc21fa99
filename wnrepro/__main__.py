"""`wnrepro` and `python -m wnrepro`: the command line, and quiet after Ctrl-C while it is still being imported."""

import sys


def main() -> None:
    try:
        from wnrepro import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
