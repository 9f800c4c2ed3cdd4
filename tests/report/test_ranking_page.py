import numpy as np

from bcnet.report.ranking_page import clouds_sentence
from bcnet.scoring.additive import WidthEffects
from bcnet.truth.ground_truth import GroundTruth


def test_what_divides_the_points_is_named():
    indices = np.array([(a, b, c) for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2, 3)])
    accuracy = 80 + 0.5 * indices[:, 0] + 6.0 * (indices[:, 1] > 2) + 0.25 * indices[:, 2]
    names = tuple("".join(map(str, row)) for row in indices)
    truth = GroundTruth(names, accuracy[:, None], np.ones(27, np.int64), np.ones(27, np.int64), {})
    sentence = clouds_sentence(WidthEffects.fit(indices, accuracy), indices, truth)
    assert "that of group 2 of 3: networks that have it at one of its 2 narrowest widths reach 81.50 %" in sentence
    assert "the others 87.50 % (the smaller part is 33 % of all)" in sentence
