"""Random streams: every random thing follows from the run's seed, its stream and its number alone."""

import numpy as np

# Independent random streams of one seed; the number is part of the stream's identity and never reused.
STREAM_MODEL, STREAM_SPLIT, STREAM_ORDER, STREAM_AUGMENT, STREAM_WIDTHS, STREAM_STEP, STREAM_SEARCH, STREAM_SAMPLE = range(8)
STREAM_MIX = 8
STREAM_OPERATIONS, STREAM_PAIRS, STREAM_IMAGES = 16, 17, 18  # of a search among operations (`bcnet.dense`)


def derive_seed(seed: int, stream: int, index: int = 0) -> int:
    """A 63-bit seed for item ``index`` of a random stream, so that a step's randomness follows from its number."""
    state = np.random.SeedSequence([seed, stream, index]).generate_state(1, np.uint64)[0]
    return int(state) >> 1


def derive_seeds(seed: int, stream: int, index: int, count: int) -> list[int]:
    """So many 63-bit seeds for the parts of item ``index`` of a random stream."""
    state = np.random.SeedSequence([seed, stream, index]).generate_state(count, np.uint64)
    return [int(one) >> 1 for one in state]
