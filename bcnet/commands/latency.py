"""``bcnet latency``: how long every layer takes on the device at hand, as a cost that budgets may name."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcnet.commands.app import app, console, stoppable
from bcnet.commands.models import (
    ArgsOption,
    Asked,
    BinsOption,
    ClassesOption,
    DivisorOption,
    ExcludeOption,
    GroupOption,
    InputOption,
    MinBinsOption,
    ModelName,
    WidenOption,
    read_args,
    read_shape,
    refuse_options,
    trace_asked,
)
from bcnet.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bcnet.latency.table import Measured
    from bcnet.space.widths import Space


class Amp(str, Enum):
    """What to autocast to."""

    off = "off"
    bf16 = "bf16"
    fp16 = "fp16"


class Runner(str, Enum):
    """What runs a network."""

    eager = "eager"
    compiled = "compiled"
    onnxruntime = "onnxruntime"


@app.command()
def latency(
    context: typer.Context,
    model: ModelName,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The table to write, such as table.json.")],
    input: InputOption = None,
    num_classes: ClassesOption = 10,
    args: ArgsOption = None,
    bins: BinsOption = 4,
    min_bins: MinBinsOption = 1,
    divisor: DivisorOption = None,
    group: GroupOption = None,
    exclude: ExcludeOption = None,
    widen: WidenOption = 1.0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once; times are of one batch.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="CPU threads.  [default: as many as torch likes]")] = None,
    amp: Annotated[Amp, typer.Option(help="Autocast to bf16 or fp16.")] = Amp.off,
    seconds_per_network: Annotated[float, typer.Option(min=0.01, help="Time for each network; more is more precise.")] = 2.0,
    backend: Annotated[
        Runner, typer.Option(help="What runs whole networks where they are deployed; single layers are timed in PyTorch.")
    ] = Runner.eager,
    repeats: Annotated[int | None, typer.Option(min=1, help="Passes of each network instead.")] = None,
    networks: Annotated[int, typer.Option(min=2, help="Networks measured layer by layer, at most.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of networks.")] = 0,
    relevel: Annotated[
        Path | None,
        typer.Option(metavar="TABLE.json", help="Measure the full network alone, and write this table of before at the level of now."),
    ] = None,
) -> None:
    """Measure how long every layer takes at every pair of widths; the same command goes on where it was stopped."""
    if out.suffix != ".json":
        raise UserError(f"--out {out}: the name of a table ends with .json")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; give the name of a file, such as {out / 'table.json'}")
    if relevel is not None:
        refuse_options(context, _OF_TABLE, "as the table of --relevel has it")
    import torch

    from bcnet.latency.backends import check_backend
    from bcnet.latency.session import LatencySettings, measure_latency
    from bcnet.latency.table import Measured, layer_times, load_latency
    from bcnet.machine import resolve_device

    place = resolve_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    check_backend(backend.value, place, amp.value)
    shape, made_with = read_shape(input, model), read_args(args)
    asked = Asked(input, num_classes, bins, min_bins, divisor, group or (), exclude or (), (), widen, made_with)
    plain, space, _ = trace_asked(model, asked)
    console.print(f"{model}: {space.summary()}")
    if relevel is not None:
        _relevel(relevel, out, plain, space, Measured(model, num_classes, shape, made_with), place, seconds_per_network)
        return
    settings = LatencySettings(
        *(model, num_classes, shape, batch_size, amp.value, seconds_per_network, repeats),
        most=networks,
        seed=seed,
        backend=backend.value,
        args=made_with,
    )
    with stoppable():
        table = measure_latency(plain, space, settings, device=place, out=out)
    cost = load_latency(out, space)
    noise, found = table.noise, table.held_out
    console.print(f"measured {table.networks} networks layer by layer, {table.covered:.0%} of all pairs of widths; on {table.meta.device}")
    console.print(f"noise: {noise.repeat:.1%} between measurements of the full network; the machine itself drifted by {noise.drift:.0%}")
    for name, widths, ms in (("narrowest", space.narrowest, table.narrowest_ms), ("full", space.full, table.full_ms)):
        console.print(f"{name}: {ms:.4g} ms measured, {cost.one(widths):.4g} ms predicted")
    console.print(f"{found.networks} other networks: Spearman {found.spearman:.3f}, median error {found.median_error:.1%}")
    if abs(table.full_ms - table.narrowest_ms) < 3 * noise.repeat * table.full_ms:
        console.print("note: on this device widths matter hardly more than the noise; a budget of latency says little")
    from bcnet.report.plots import draw_latency

    drawn = out.with_suffix(".png")
    draw_latency(drawn, found.predicted_ms, found.measured_ms, layer_times(out, space))
    console.print(f"picture: {drawn}", markup=False)
    budget = f"latency={(table.narrowest_ms + table.full_ms) / 2:.3g}ms"
    console.print(f"table: {out}; a budget such as {budget} wants 'costs=[{out}]'")


_OF_TABLE = "batch_size", "threads", "amp", "backend", "repeats", "networks", "seed"


def _relevel(before: Path, out: Path, model: "nn.Module", space: "Space", of: "Measured", device: "torch.device", seconds: float) -> None:
    from bcnet.latency.relevel import relevel

    table, factor = relevel(before, model, space, of=of, device=device, seconds=seconds)
    table.write(out)
    console.print(f"full: {table.full_ms:.4g} ms, {factor:.3f} times as long as when {before} was measured")
    console.print(f"table: {out}, all times of {before} times {factor:.3f}")
