import json

import pytest

from bcnet.report.truth_page import describe_truth, write_truth_page
from bcnet.truth.ground_truth import load_ground_truth


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_truth_is_described_and_drawn(tmp_path, seeds):
    tree = {
        f"{a}{b}": {"acc": [80.0 + 3 * a + b + 0.1 * s * (-1) ** a for s in range(seeds)], "params": 10 * a + b, "flops": 100 * a * b}
        for a in range(1, 5)
        for b in range(1, 5)
    }
    (tmp_path / "truth.json").write_text(json.dumps(tree))
    truth = load_ground_truth(tmp_path / "truth.json")
    summary = describe_truth(truth)
    assert summary.costs == {"flops": (100, 1600), "params": (11, 44)}
    assert summary.most_accurate == "44"
    assert summary.best[-1].best == "44"
    assert len(summary.noise_ceiling) == (seeds if seeds > 1 else 0)
    assert sorted(summary.noise_ceiling) == summary.noise_ceiling
    page = write_truth_page(tmp_path, truth, summary, "truth.json")
    assert page.read_text().count("data:image/png;base64,") == 1
