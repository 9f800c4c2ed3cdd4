"""``bcnet rank`` as a script, for torchrun: torchrun --nproc-per-node 4 tools/evaluate_ranking.py ARGUMENTS."""

import sys

from bcnet.__main__ import main

if __name__ == "__main__":
    main(["rank", *sys.argv[1:]])
