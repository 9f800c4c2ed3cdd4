"""The pictures and the page of a search of a grid, from whatever the run holds so far."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from bcnet.dense.results import Candidate, DenseRecord
from bcnet.dense.run import DenseRun
from bcnet.files import read_json
from bcnet.formatting import human, plural
from bcnet.report import dense_plots, plots
from bcnet.report.page import Page, details, picture, table, text


def write_dense_page(run: DenseRun) -> Path:
    """Draw every picture and write ``index.html``; returns its path."""
    record, folder, grid = run.record(), run.folder, run.experiment.grid
    page = Page(f"bcnet: a grid of {plural(len(grid.used), 'block')}, {run.config.data.source}", f"DenseNAS: {grid.summary()}.")
    _add_found(page, run, record)
    _add_retraining(page, run)
    _add_course(page, run, record)
    _add_grid(page, run)
    page.section(
        "How it was made",
        details("config", (folder / "config.yaml").read_text(encoding="utf-8")),
        details("environment", json.dumps(read_json(folder / "environment.json", "the environment of a run"), indent=1)),
    )
    target = folder / "index.html"
    page.write(target)
    return target


def _add_found(page: Page, run: DenseRun, record: DenseRecord) -> None:
    best, costs = record.best, run.experiment.costs
    said = ", ".join(_cost(run, name, value) for name, value in best.costs.items())
    asked = f" for the budget {record.budget.text}" if record.budget else ""
    words = f"Found{asked}: {said}; {best.val_accuracy:.2f} % of the held-out images are right with inherited weights."
    probable = ", ".join(_cost(run, name, value) for name, value in record.most_probable_costs.items())
    edges = run.searched.architecture.edges().detach().tolist()
    place = run.searched.architecture.edge_place
    dense_plots.draw_grid(run.folder / "grid.png", costs.grid, {pair: edges[r][c] for pair, (r, c) in place.items()}, best.path)
    header = ("blocks (widths)", "layers", "score", "inherited accuracy [%]", *(name.replace("flops", "FLOPs") for name in best.costs))
    page.section(
        "The network that was found",
        text(words),
        details("net_config", best.net_config.replace("|", "|\n")),
        picture(run.folder / "grid.png", "the grid and the path"),
        text(f"The most probable network, whatever it costs: {probable}."),
        text("What was compared: the most probable ones within the budget, then some of their paths that use more of it."),
        table(header, [_row(run, one) for one in record.candidates]),
    )


def _cost(run: DenseRun, name: str, value: float) -> str:
    return f"{run.experiment.costs.written(name, value)} {name.replace('flops', 'FLOPs')}"


def _row(run: DenseRun, one: Candidate) -> Sequence[object]:
    widths = "-".join(str(run.config.grid.widths[block]) for block in one.path)
    skip = len(run.experiment.grid.stack_names) - 1
    layers = len(one.heads) + sum(operation != skip for stack in one.stacks for operation in stack)
    return widths, layers, one.score, one.val_accuracy, *(human(value) for value in one.costs.values())


def _add_retraining(page: Page, run: DenseRun) -> None:
    known = run.retrained()
    if not known:
        return
    plots.draw_retraining(run.folder / "retraining.png", {one.name: one.acc for one in known})
    rows = [
        (
            one.name,
            human(one.costs["flops"]),
            human(one.costs["params"]),
            len(one.acc),
            fmean(one.acc),
            round(stdev(one.acc), 2) if len(one.acc) > 1 else "-",
        )
        for one in known
    ]
    header = ("network", "FLOPs", "params", "seeds", "test accuracy [%]", "standard deviation")
    page.section("Trained from scratch", table(header, rows), picture(run.folder / "retraining.png", "accuracy per seed"))


def _add_course(page: Page, run: DenseRun, record: DenseRecord) -> None:
    start, folder, last = run.config.architecture.start_epoch, run.folder, record.epochs[-1]
    dense_plots.draw_course(folder / "course.png", record, start)
    dense_plots.draw_shares(folder / "shares.png", record.epochs, start)
    words = (
        f"{record.steps:,} steps in {record.search_seconds:,.0f} s; the architecture joined in after epoch {start}. Operations were drawn "
        f"{_SAMPLING[run.config.weights.sampling]}; how often each was trained differs from the mean of its place by up to "
        f"{record.operation_deviation:.0%}."
    )
    page.section("The search", text(words), picture(folder / "course.png", "loss and cost over epochs"))
    most = max(last.shares, key=lambda name: last.shares[name])
    page.section(
        "Operations",
        text(f"{collapse_sentence(record)} Of a random network's layers {last.shares[most]:.0%} are {most}."),
        picture(folder / "shares.png", "shares of operations over epochs"),
    )


_SAMPLING = {"probable": "by their probabilities", "uniform": "uniformly", "fair": "in turn, each as often as the others"}


def collapse_sentence(record: DenseRecord) -> str:
    """Whether one operation has taken over, in words: it makes more than half of a random network's layers, and twice its first share."""
    first, last = record.epochs[0].shares, record.epochs[-1].shares
    most = max(last, key=lambda name: last[name])
    if last[most] > 0.5 and last[most] > 2 * first[most]:
        return f"The search has collapsed to {most}: weights.sampling=fair or weights.superkernel=true prevent that."
    return "No operation has taken over."


def _add_grid(page: Page, run: DenseRun) -> None:
    grid, config, costs = run.experiment.grid, run.config.grid, run.experiment.costs
    rows = [
        (str(block + 1), config.widths[block], config.maps[block], grid.stages[block], grid.depth(block), len(grid.outgoing[block]))
        for block in grid.used
    ]
    reach = ", ".join(
        f"{name.replace('flops', 'FLOPs')} {human(costs.range(name)[0])} to {human(costs.range(name)[1])}" for name in costs.names
    )
    header = ("block", "width", "map", "stage", "stacked layers", "edges that leave it")
    page.section("The grid", text(f"Networks of it reach {reach}."), table(header, rows))
