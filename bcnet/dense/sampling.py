"""Which operations a step of the search uses, a pure function of seed, step and probabilities.

Fang et al., section 3.4: a step for the weights samples one operation per mixed operation, one for the architecture two. Sampled by
their probabilities, the operation that is ahead is trained more and gets further ahead. ``fair`` sampling goes through the operations
in random order instead, as the strategies for widths do: in every round of as many steps as there are operations, each is used once
(in pairs: twice).
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bcnet.seeds import STREAM_OPERATIONS, STREAM_PAIRS, derive_seed

Sampling = Literal["probable", "uniform", "fair"]


def sample_operations(probabilities: Tensor, count: int, how: Sampling, *, seed: int, step: int, part: int) -> Tensor:
    """Numbers of the operations to use.

    Args:
        probabilities: ``(mixed operations, operations)``, on any device.
        count: how many of each, 1 or 2; where there are fewer, all.
        how: by their probabilities without replacement, uniformly without replacement, or in turn.
        seed: of the run.
        step: number of the step among those of its kind.
        part: tells the heads (0) from the stacked layers (1).

    Returns:
        ``(mixed operations, count)`` on the CPU, all different in a row.
    """
    rows, operations = probabilities.shape
    count = min(count, operations)
    stream = STREAM_OPERATIONS if count == 1 else STREAM_PAIRS
    if how == "fair":
        round_, turn = divmod(step, operations)
        rng = np.random.default_rng(derive_seed(seed, stream, 2 * round_ + part))
        order = rng.permuted(np.tile(np.arange(operations), (rows, 1)), axis=1)
        return torch.from_numpy(order[:, [(count * turn + place) % operations for place in range(count)]])
    rng = np.random.default_rng(derive_seed(seed, stream, 2 * step + part))
    if how == "uniform":
        return torch.from_numpy(rng.permuted(np.tile(np.arange(operations), (rows, 1)), axis=1)[:, :count])
    keys = probabilities.detach().cpu().double().clamp_min(1e-12).log().numpy() + rng.gumbel(size=(rows, operations))
    return torch.from_numpy(np.argsort(-keys, axis=1, kind="stable")[:, :count].copy())  # Gumbel-top-k: sampling without replacement


def keep_mass(after: Tensor, before: Tensor, used: Tensor, temperature: float = 1.0) -> Tensor:
    """Parameters after a step that compared some of the operations, so that only what is between those has changed.

    The ones that were not compared stay as they were, and the others are shifted so that their joint probability is unchanged
    (section 3.4).

    Args:
        after: ``(mixed operations, operations)`` that the optimizer gave.
        before: what they were.
        used: ``(mixed operations, 2)`` numbers of those that were compared.
        temperature: that the softmax divides by.
    """
    if not used.numel():
        return before.clone()
    new, old = after.gather(1, used), before.gather(1, used)
    shift = ((new / temperature).logsumexp(1) - (old / temperature).logsumexp(1)) * temperature
    return before.scatter(1, used, new - shift[:, None])
