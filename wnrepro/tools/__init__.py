"""Programs of the project's maintainers: `python -m wnrepro.tools.NAME` from a clone."""
