import json

import numpy as np
import pytest
import torch
from grids import all_choices, tiny

from bcnet.config import load_as
from bcnet.dense.config import DenseConfig
from bcnet.dense.grid import Grid
from bcnet.dense.latency import measure_grid, read_latency
from bcnet.errors import UserError
from bcnet.latency.part import PartFile
from bcnet.latency.timing import visit
from bcnet.models.net_config import read_net_config
from bcnet.seals import read_line

IMAGENET = (3, 224, 224), 1000
SMALL = (3, 8, 8), 5


def shipped(name):
    return Grid(load_as(DenseConfig, f"dense/{name}").grid)


def test_published_networks_take_what_was_published(published_latency, published_networks):
    grid = shipped("mbv2")
    cost = read_latency(published_latency, grid, *IMAGENET)
    ms = {name: cost.of(grid.find(read_net_config(row["net_config"]))) for name, row in published_networks.items()}
    assert (round(ms["A"], 2), round(ms["C"], 2)) == (13.65, 18.01)


def test_the_published_resnet_table_is_of_the_resnet_grid(resnet_latency):
    grid = shipped("resnet")
    cost = read_latency(resnet_latency, grid, *IMAGENET)
    assert len(cost.heads) == len(grid.heads)
    assert len(cost.stacks) == len(grid.layers)


def test_a_table_of_another_grid_is_refused_in_a_line(published_latency, resnet_latency):
    with pytest.raises(UserError, match="a table of another grid: it has 20 blocks behind the first, the grid 16"):
        read_latency(resnet_latency, shipped("mbv2"), *IMAGENET)
    config = load_as(DenseConfig, "dense/mbv2", ["grid.adjoin=3"])
    with pytest.raises(UserError, match=r"block 7 \(width 64\).*4 connections there, 3 in the grid"):
        read_latency(published_latency, Grid(config.grid), *IMAGENET)


def measured(out, **changes):
    return measure_grid(tiny(**changes), *SMALL, device=torch.device("cpu"), repeats=2, out=out)


def test_a_measured_table_is_read_back_and_holds_its_circumstances(tmp_path):
    table, grid = measured(tmp_path / "table.json"), tiny()
    cost = read_latency(tmp_path / "table.json", grid, *SMALL)
    assert table.meta.input == [3, 8, 8]
    assert table.meta.turns == 2
    assert min(min(row) for row in cost.heads.values()) > 0
    (choice, *_) = all_choices(grid)
    before, blocks, lasts, behind = table.table
    heads, stack = blocks[0]
    assert choice.path == (0, 1, 2, 3)
    skipped = [blocks[1][1][layer][choice.stacks[1][layer]] for layer in range(2)]
    total = before + heads[0][0] + stack[0][0] + blocks[1][0][0][0] + sum(skipped) + blocks[2][0][0][0] + lasts[0] + behind
    assert cost.of(choice) == pytest.approx(total)
    with pytest.raises(UserError, match="a table of another grid: last is 12 there"):
        read_latency(tmp_path / "table.json", tiny(last=13), *SMALL)


def test_a_table_of_other_images_or_classes_is_refused_and_one_of_another_machine_is_said(tmp_path, capsys):
    table, file = measured(tmp_path / "table.json"), tmp_path / "table.json"
    assert read_latency(file, tiny(), *SMALL).const > 0
    assert capsys.readouterr().err == ""
    for others, words in (
        (((3, 16, 16), 5), "input 3x8x8, and here input is 3x16x16"),
        (((3, 8, 8), 6), "num_classes 5, and here num_classes is 6"),
    ):
        with pytest.raises(UserError, match=f"{words}; measure it with: bcnet dense latency"):
            read_latency(file, tiny(), *others)
    table.model_copy(update={"meta": table.meta.model_copy(update={"device": "Raspberry Pi"})}).write(file)
    read_latency(file, tiny(), *SMALL)
    assert "was measured on Raspberry Pi with torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[:3], "wanted .stem and first block"),
        (lambda t: [*t[:3], -1.0], "wanted rows of milliseconds"),
        (lambda t: [*t[:3], float("nan")], "wanted rows of milliseconds"),
        (lambda t: [t[0], t[1], t[2] + [0.1], t[3]], "the last convolution: 2 numbers there, 1 in the grid"),
        (lambda t: [t[0], [*t[1][:2], [5, 5]], *t[2:]], "block 4"),
        (lambda t: {"format": "bcnet-dense-latency-1", "table": t}, "meta: Field required"),
    ],
)
def test_what_is_no_table_is_refused_in_a_line(tmp_path, change, words):
    file = tmp_path / "table.json"
    file.write_text(json.dumps(change(measured(tmp_path / "measured.json").table)))
    with pytest.raises(UserError, match=words) as caught:
        read_latency(file, tiny(), *SMALL)
    assert "\n" not in str(caught.value)


def test_a_measurement_that_was_stopped_goes_on(tmp_path, monkeypatch):
    out, part = tmp_path / "table.json", tmp_path / "table.json.part"
    visits = []

    def seen(subject, reference, **options):
        if len(visits) == 5:
            raise KeyboardInterrupt
        visits.append(subject)
        return visit(subject, reference, **options)

    monkeypatch.setattr("bcnet.dense.latency.visit", seen)
    with pytest.raises(KeyboardInterrupt):
        measured(out)
    kept = part.read_bytes()
    assert kept.count(b"\n") == 6  # a header and five operations
    part.write_bytes(kept + b"half a li")
    with pytest.raises(UserError, match="begun with num_classes=5, not 6"):
        measure_grid(tiny(), (3, 8, 8), 6, device=torch.device("cpu"), repeats=2, out=out)
    with pytest.raises(UserError, match="begun with another grid"):
        measured(out, last=13)
    assert not out.exists()
    part.write_bytes(kept + b"half a li")
    visits[:] = [None] * 6
    table = measured(out)
    fresh = len(visits) - 6
    assert not part.exists()
    monkeypatch.undo()
    whole = measured(tmp_path / "whole.json")
    assert np.shape(table.table[2]) == np.shape(whole.table[2])
    first = [read_line(line)["ratio"] for line in kept.splitlines()[1:]]
    times = json.dumps(table.table)
    assert all(json.dumps(ratio * table.meta.reference_ms) in times for ratio in first)
    assert fresh > 0


def test_a_part_of_other_operations_is_refused(tmp_path):
    out, part = tmp_path / "table.json", tmp_path / "table.json.part"
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("bcnet.latency.part.PartFile.append", _stop_after(3))
        measured(out)
    lines = part.read_text().splitlines()
    part.write_text("\n".join([lines[0], lines[2], lines[1], ""]))
    with pytest.raises(UserError, match="holds other measurements than these settings ask for"):
        measured(out)
    part.write_text("\n".join([lines[0], lines[1][:30], lines[2], ""]))
    with pytest.raises(UserError, match="is damaged; delete it to start anew"):
        measured(out)
    entry = read_line(lines[1].encode())
    for wrong in (entry | {"ratio": "1"}, entry | {"turns": None}, {"operation": entry["operation"]}):
        part.write_text("\n".join([lines[0], json.dumps(wrong), ""]))  # without a seal, as older versions wrote lines
        with pytest.raises(UserError, match="is damaged; delete it to start anew"):
            measured(out)


def _stop_after(count):
    append = PartFile.append

    def stopping(self, line):
        append(self, line)
        if len(self.lines) == count:
            raise KeyboardInterrupt

    return stopping
