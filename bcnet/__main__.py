"""``python -m bcnet``, and the ``bcnet`` command."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C is one line also while libraries are still being imported."""
    try:
        from bcnet.cli import main as run

        run()
    except KeyboardInterrupt:
        print("bcnet: stopped by SIGINT", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
