"""What can be searched in many models, as a page."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bcnet.formatting import human
from bcnet.report import plots
from bcnet.report.page import Page, picture, table, text
from bcnet.supernet.survey import SurveyRow

_TERMS = (
    "Share: part of the model's multiply-adds that lies in layers with channels that are searched. Narrowest: multiply-adds of the "
    "narrowest network, relative to the model's. Equal: whether multiply-adds of the model, of the narrowest network and of a random "
    "one are those that PyTorch's own counter finds in the extracted network. Fixed: layers that stay whole, the output among them."
)


def write_survey_page(folder: Path, rows: Sequence[SurveyRow], title: str) -> Path:
    """Draw ``survey.png`` and write ``survey.html``; returns the page's path."""
    searched, refused = [row for row in rows if row.groups], [row for row in rows if not row.groups]
    equal = sum(row.equal for row in searched)
    lead = f"{len(searched)} of {len(rows)} models can be searched; in {equal} of them all FLOPs are those of PyTorch's own counter."
    page = Page(f"bcnet space --all {title}", lead)
    if searched:
        plots.draw_survey(folder / "survey.png", [row.share for row in searched], [row.narrowest for row in searched])
        page.section(
            "How much of a model can be searched", picture(folder / "survey.png", "histograms of searched share and narrowest FLOPs")
        )
    page.section("Terms", text(_TERMS))
    columns = ("model", "input", "groups", "share", "narrowest", "FLOPs", "equal", "fixed", "seconds", "why layers stay whole")
    page.section("Models that can be searched", table(columns, [_cells(row) for row in searched]))
    if refused:
        cells = [(row.model, row.input, row.seconds, row.refusal) for row in refused]
        page.section("Models that were refused", table(("model", "input", "seconds", "why"), cells))
    page.section("Why layers stay whole", table(("reason", "layers"), _count_reasons(searched)))
    page.write(folder / "survey.html")
    return folder / "survey.html"


def _cells(row: SurveyRow) -> tuple[object, ...]:
    numbers = row.groups, f"{row.share:.2f}", f"{row.narrowest:.2f}", human(row.flops)
    return row.model, row.input, *numbers, "yes" if row.equal else "no", row.fixed, row.seconds, row.reasons


def _count_reasons(rows: Sequence[SurveyRow]) -> list[tuple[str, int]]:
    reasons: Counter[str] = Counter()
    for row in rows:
        for part in row.reasons.split("; "):
            why, _, number = part.rpartition(" (")
            if number.rstrip(")").isdigit():
                reasons[why] += int(number.rstrip(")"))
    return reasons.most_common(40)
