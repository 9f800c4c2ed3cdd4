"""``bcnet doctor``."""

from pathlib import Path
from typing import Annotated

import typer

from bcnet.commands.app import app, console


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory of any command, or a folder of such.")],
) -> None:
    """Read every file of a run: what is whole, what is damaged, what can be resumed and how; changes nothing. Exit code 1: damage."""
    from bcnet.doctor import examine
    from bcnet.formatting import plural

    found = examine(folder)
    for finding in found.findings:
        console.print(f"{finding.state:10}  {finding.path.relative_to(folder)}: {finding.words}", markup=False)
    counts = [f"{len(found.of(state))} {state}" for state in ("whole", "unfinished", "left over", "in use", "damaged")]  # type: ignore[arg-type]
    console.print(f"{plural(len(found.findings), 'file')}: {', '.join(counts)}")
    if found.of("damaged"):
        console.print("a damaged file stops whatever reads it: remove it, and give the command that made it again")
    for command in found.next:
        console.print(f"next: {command}", markup=False)
    if found.of("damaged"):
        raise typer.Exit(1)
