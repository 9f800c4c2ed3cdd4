"""``bcnet configs`` and ``bcnet config``: what is shipped, and what a config means with everything that it leaves unsaid."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from bcnet.commands.app import Overrides, app, console
from bcnet.trees import dump_yaml

WIDTH = 120


@app.command()
def configs() -> None:
    """List the shipped configs, a line each."""
    from bcnet.config import shipped_configs
    from bcnet.files import shipped

    names = shipped_configs()
    for name in names:
        console.print(f"{name:<{max(map(len, names))}}  {_first_comment(shipped('configs') / f'{name}.yaml')}")
    console.print("bcnet config NAME shows all of one, bcnet train NAME trains it; configs of another kind of search: bcnet dense --help")


def _first_comment(path: Path) -> str:
    """The first sentence of the comment that a config begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    comment = " ".join(line.lstrip("# ") for line in lines[:first])
    return comment.split(". ")[0].split(": ")[0].rstrip(".:")


@app.command()
def config(
    name: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped config.")],
    overrides: Overrides = None,
) -> None:
    """Print a config with every field that it has, and what each means."""
    from bcnet.config import load_config

    for line in _documented(load_config(name, overrides or (), trust=True), ""):
        console.print(line)


def _documented(section: BaseModel, indent: str) -> Iterator[str]:
    """The lines of a section as YAML, with its docstrings as comments."""
    plain = section.model_dump(mode="json")
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        text = " ".join((field.description or (type(value).__doc__ if isinstance(value, BaseModel) else None) or "").split())
        yield from textwrap.wrap(text.replace("``", ""), WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if isinstance(value, BaseModel) and isinstance(plain.get(key), dict) and set(plain[key]) <= set(type(value).model_fields):
            yield f"{indent}{key}:"
            yield from _documented(value, f"{indent}  ")
        else:
            written = dump_yaml(plain.get(key, value), width=10**6, default_flow_style=True)
            yield f"{indent}{key}: {written.removesuffix('...' + chr(10)).strip()}"
