"""The entry point of `wnrepro` and `python -m wnrepro`, without a traceback after Ctrl-C during the imports."""

import sys


def main() -> None:
    try:
        from wnrepro import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
