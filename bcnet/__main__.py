"""``python -m bcnet``."""

from bcnet.cli import main

if __name__ == "__main__":
    main()
