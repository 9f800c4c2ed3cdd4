"""``bcnet search`` as a script, for torchrun: torchrun --nproc-per-node 4 tools/search.py ARGUMENTS."""

import sys

from bcnet.__main__ import main

if __name__ == "__main__":
    main(["search", *sys.argv[1:]])
