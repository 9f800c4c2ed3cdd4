import numpy as np

from bcnet.training.records import LossRecords


def test_the_best_losses_of_different_widths_are_kept():
    rng = np.random.default_rng(0)
    history = [(float(rng.random()), tuple(int(k) for k in rng.integers(1, 5, 3))) for _ in range(500)]
    records = LossRecords(10)
    for loss, widths in history:
        records.add(loss, widths)
    best = {}
    for loss, widths in history:
        best[widths] = min(loss, best.get(widths, 1e9))
    assert records.sorted() == sorted((loss, widths) for widths, loss in best.items())[:10]
    assert LossRecords.from_list(10, records.to_list()).sorted() == records.sorted()
