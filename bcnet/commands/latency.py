"""``bcnet latency``: how long every layer takes on the device at hand, as a cost that budgets may name."""

import signal
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from bcnet.commands.app import app, console
from bcnet.commands.models import (
    BinsOption,
    ClassesOption,
    DivisorOption,
    ExcludeOption,
    GroupOption,
    InputOption,
    MinBinsOption,
    ModelName,
    read_choices,
    read_shape,
)
from bcnet.errors import Interrupted, UserError


class Amp(str, Enum):
    """Whether to autocast."""

    off = "off"
    bf16 = "bf16"


@app.command()
def latency(
    model: ModelName,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The table to write, such as table.json.")],
    input: InputOption = None,
    num_classes: ClassesOption = 10,
    bins: BinsOption = 4,
    min_bins: MinBinsOption = 1,
    divisor: DivisorOption = None,
    group: GroupOption = None,
    exclude: ExcludeOption = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once; times are of one batch.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: as many as torch likes]")] = None,
    amp: Annotated[Amp, typer.Option(help="bf16 autocast.")] = Amp.off,
    seconds_per_network: Annotated[float, typer.Option(min=0.01, help="Time for each network; more is more precise.")] = 2.0,
    repeats: Annotated[int | None, typer.Option(min=1, help="Passes of each network instead.")] = None,
    networks: Annotated[int, typer.Option(min=2, help="Networks measured layer by layer, at most.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of networks.")] = 0,
) -> None:
    """Measure how long every layer takes at every pair of widths; the same command goes on where it was stopped."""
    if out.suffix != ".json":
        raise UserError(f"--out {out}: the name of a table ends with .json")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; give the name of a file, such as {out / 'table.json'}")
    import torch

    from bcnet.latency.session import LatencySettings, measure_latency
    from bcnet.latency.table import load_latency
    from bcnet.machine import resolve_device
    from bcnet.models.factory import build_model, default_divisor
    from bcnet.supernet.proof import trace

    place = resolve_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    shape = read_shape(input, model)
    plain = build_model(model, num_classes)
    choices = read_choices(group or ())
    divisor = divisor or default_divisor(model)
    space = trace(plain, shape, bins=bins, min_bins=min_bins, divisor=divisor, choices=choices, exclude=exclude or ())
    console.print(f"{model}: {space.summary()}")
    settings = LatencySettings(model, num_classes, shape, batch_size, amp.value, seconds_per_network, repeats, most=networks, seed=seed)
    try:
        table = measure_latency(plain, space, settings, device=place, out=out)
    except KeyboardInterrupt:
        raise Interrupted("stopped by SIGINT; the same command goes on where it was", signal.SIGINT) from None
    cost = load_latency(out, space)
    noise, found = table.noise, table.held_out
    console.print(f"measured {table.networks} networks layer by layer, {table.covered:.0%} of all pairs of widths; on {table.meta.device}")
    console.print(f"noise: {noise.repeat:.1%} between measurements of the full network; the machine itself drifted by {noise.drift:.0%}")
    for name, widths, ms in (("narrowest", space.narrowest, table.narrowest_ms), ("full", space.full, table.full_ms)):
        console.print(f"{name}: {ms:.4g} ms measured, {cost.one(widths):.4g} ms predicted")
    console.print(f"{found.networks} other networks: Spearman {found.spearman:.3f}, median error {found.median_error:.1%}")
    if abs(table.full_ms - table.narrowest_ms) < 3 * noise.repeat * table.full_ms:
        console.print("note: on this device widths matter hardly more than the noise; a budget of latency says little")
    budget = f"latency={(table.narrowest_ms + table.full_ms) / 2:.3g}ms"
    console.print(f"table: {out}; a budget such as {budget} wants 'costs=[{out}]'", markup=False)
