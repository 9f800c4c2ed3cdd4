import numpy as np


def test_the_uniform_width_fills_the_budget_that_it_is_compared_at(run):
    """No group can be given one more channel, and none is more than two channels from the share that all have."""
    costs, groups = run.costs, run.space.groups
    rng = np.random.default_rng(0)
    left = []
    for widths in [run.space.narrowest, run.space.full, *(run.space.sample(rng) for _ in range(30))]:
        flops = costs.one(widths, "flops")
        channels = run.experiment.uniform_channels(flops)
        left.append(1 - costs.of_channels(channels, "flops") / flops)
        assert left[-1] >= 0
        for place, group in enumerate(groups):
            wider = [*channels[:place], channels[place] + 1, *channels[place + 1 :]]
            assert wider[place] > group.channels or costs.of_channels(wider, "flops") > flops
        share = np.array(channels) / [group.channels for group in groups]
        assert np.ptp(share) * min(group.channels for group in groups) <= 2
    assert run.experiment.uniform_channels(costs.one(run.space.full, "flops")) == tuple(group.channels for group in groups)
    assert np.median(left) < 0.01
    assert max(left) < 0.02  # digits have 8 to 16 channels per group, so a single one is much
