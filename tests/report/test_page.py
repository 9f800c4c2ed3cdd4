from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest

import bcnet
from bcnet.report.page import Page, details, links, narrow_form, picture, table, text
from bcnet.report.plots import draw_survey, draw_widths
from bcnet.report.run_page import verdict, welch, write_run_page
from bcnet.results import RetrainedWidth, RetrainRecord


class Outline(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.sources, self.headings = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "srcset", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def read(path):
    outline = Outline()
    outline.feed(path.read_text())
    assert not outline.open
    return outline


def test_a_page_is_well_formed_and_escapes_what_it_is_given(tmp_path):
    page = Page("a <b>", "lead & more")
    page.section("one", text("x < y"), table(("a",), [(1,), (0.5,), ("<i>",)]), details("t", "</pre>"), picture(tmp_path / "none.png", ""))
    page.write(tmp_path / "page.html")
    assert read(tmp_path / "page.html").headings == ["a <b>", "one"]


def test_a_page_explains_the_words_it_uses_and_no_others_and_says_how_it_was_made(tmp_path):
    page = Page("one", "The regret of a pick.")
    page.section("two", details("config", "supernet, Kendall"), table(("noise ceiling",), []))
    page.write(tmp_path / "page.html")
    words = (tmp_path / "page.html").read_text()
    assert "<dt>Regret</dt>" in words
    assert "<dt>Noise ceiling</dt>" in words
    assert "<dt>Kendall" not in words  # what unfolds is not explained
    assert f"bcnet {bcnet.__version__}" in words
    assert "PyTorch" in words


def test_links_lead_to_pages_that_are_there(tmp_path):
    (tmp_path / "ranking.html").touch()
    assert links(tmp_path, {"ranking.html": "a & b", "truth.html": "no"}) == '<p><a href="ranking.html">a &amp; b</a></p>'
    assert links(tmp_path, {"truth.html": "no"}) == ""


def test_narrow_screens_get_the_panels_below_each_other(tmp_path):
    draw_survey(tmp_path / "survey.png", [0.2, 0.9], [0.1, 0.5])
    shown = picture(tmp_path / "survey.png", "two panels")
    assert shown.count("data:image/png;base64,") == 2
    assert '<source media="(max-width: 640px)"' in shown
    wide, narrow = (plt.imread(path).shape for path in (tmp_path / "survey.png", narrow_form(tmp_path / "survey.png")))
    assert wide[1] > 2 * wide[0]
    assert narrow[0] > narrow[1]


def test_many_groups_are_rows_so_that_their_names_can_be_read(tmp_path):
    sizes = {}
    for count in (5, 40):
        draw_widths(tmp_path / f"{count}.png", [f"group {n}" for n in range(count)], {"full": [8] * count, "found": [4] * count})
        sizes[count] = plt.imread(tmp_path / f"{count}.png").shape
    assert sizes[5][1] > sizes[5][0]
    assert sizes[40][0] > sizes[40][1]


def test_the_page_of_a_run_needs_nothing_from_outside(run):
    before = read(write_run_page(run))
    assert "Fairness" in before.headings
    run.search("flops=0.5")
    best = run.search("flops=0.5").best.widths
    run.retrain(run.space.decode(best), [0, 1])
    after = read(write_run_page(run))
    assert len(after.sources) == 7  # five pictures, two of them in a narrow form as well
    assert all(source.startswith("data:image/png;base64,") for source in after.sources)
    assert after.headings[1:5] == ["The width that was found", "Trained from scratch", "Training", "Fairness"]


@pytest.mark.parametrize(
    ("found", "uniform", "words"),
    [
        ([95.0, 95.2, 95.1], [90.0, 90.1, 90.2], "the found width is better"),
        ([90.0, 90.2, 90.1], [95.0, 95.1, 95.2], "the uniform width is better"),
        ([90.0, 96.0, 93.0], [91.0, 95.0, 92.0], "within the noise"),
        ([90.0], [91.0], "one seed cannot tell"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(found, uniform, words):
    networks = (RetrainedWidth(channels=[8], acc=acc, seeds=list(range(len(acc))), flops=1, params=1) for acc in (found, uniform))
    assert words in verdict(RetrainRecord(**dict(zip(("found", "uniform"), networks, strict=True))))


def test_the_verdict_is_wrong_no_more_often_than_it_says():
    """Of two networks that are equally good, three seeds each: once in twenty times a difference is called real, not once in eight."""
    rng = np.random.default_rng(0)
    draws = rng.normal(95, 0.5, (2000, 2, 3))
    wrong = np.mean([welch(*pair)[2] < 0.05 for pair in draws.tolist()])
    assert wrong < 0.055
    two_errors = np.abs(draws.mean(2) @ (1, -1)) > 2 * np.sqrt(draws.var(2, ddof=1).sum(1) / 3)
    assert two_errors.mean() > 0.1  # as the verdict was made once


def test_accuracies_that_do_not_vary_are_no_noise():
    assert welch([90.0, 90.0], [91.0, 91.0, 91.0]) is None
    assert welch([90.0, 90.0], [91.0, 92.0]) is not None
