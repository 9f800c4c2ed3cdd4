"""The page of a plain training."""

from pathlib import Path
from statistics import fmean, stdev

from bcnet.errors import UserError, first_line
from bcnet.files import read_table
from bcnet.fit import Fit
from bcnet.formatting import human
from bcnet.report import plots
from bcnet.report.page import Page, details, picture, table, text
from bcnet.results import FitRecord


def write_fit_page(fit: Fit, record: FitRecord) -> Path:
    """Write ``index.html`` into the folder of a training; returns its path."""
    start = "its trained weights" if record.start == "trained" else "scratch"
    lead = f"{human(record.flops)} multiply-adds, {human(record.params)} params, trained from {start}."
    page = Page(f"{record.model}, trained", lead)
    spread = f" (standard deviation {stdev(record.acc):.2f})" if len(record.acc) > 1 else ""
    words = f"Test accuracy {fmean(record.acc):.2f} %{spread}; test images were looked at once, after the last epoch."
    rows = [(str(seed), accuracy) for seed, accuracy in zip(record.seeds, record.acc, strict=True)]
    page.section("Accuracy", text(words), table(("seed", "test accuracy [%]"), rows))
    courses = {f"seed {seed}": _course(fit.folder / f"seed{seed}" / "progress.csv") for seed in record.seeds}
    plots.draw_courses(fit.folder / "training.png", courses)
    page.section("Training", picture(fit.folder / "training.png", "training loss and learning rate"))
    page.section("Settings", details("config.yaml", (fit.folder / "config.yaml").read_text(encoding="utf-8")))
    page.write(fit.folder / "index.html")
    return fit.folder / "index.html"


def _course(path: Path) -> list[tuple[int, float, float]]:
    """Step, loss and learning rate of every row."""
    what = "the course of a training"
    header, *rows = read_table(path, what) or [[]]
    try:
        of_rows = [dict(zip(header, row, strict=True)) for row in rows]
        return [(int(row["step"]), float(row["loss"]), float(row["lr"])) for row in of_rows if row["loss"]]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); expected {what}") from error
