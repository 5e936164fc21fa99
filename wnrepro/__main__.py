"""The entry point of `wnrepro` and `python -m wnrepro`, without a traceback after Ctrl-C during the imports."""

import os
import sys

SPINS = "1000"  # how often an idle thread of GNU OpenMP looks for work before it sleeps; its default: 300000


def main() -> None:
    if "OMP_WAIT_POLICY" not in os.environ:  # torch's idle threads would hold the processors of a busy machine
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    try:
        from wnrepro import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
