"""``bcnet train`` as a script, for torchrun: torchrun --nproc-per-node 4 tools/train_supernet.py ARGUMENTS."""

import sys

from bcnet.__main__ import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
