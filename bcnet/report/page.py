"""One HTML page for a run: self-contained (inline images, no requests), readable on a phone."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from bcnet.files import write_text

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #0f172a; background: #f8fafc; margin: 0; }
main { max-width: 54rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
section { background: #fff; border: 1px solid #e2e8f0; border-radius: .6rem; padding: 1rem 1.2rem; margin: 1rem 0; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; }
td, th { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid #e2e8f0; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: #f1f5f9; padding: .8rem; border-radius: .4rem; overflow-x: auto; font-size: .8rem; }
p { margin: .4rem 0; } summary { cursor: pointer; color: #475569; }
"""


class Page:
    """Sections of text, tables and pictures, written as one file.

    Args:
        title: the page's title.
        lead: one sentence below it.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title, self.lead = title, lead
        self.parts: list[str] = []

    def section(self, title: str, *parts: str) -> None:
        """Add a section from what `text`, `table`, `picture` and `details` return; empty parts are left out."""
        self.parts.append(f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>")

    def write(self, path: Path) -> None:
        """Write the page."""
        viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
        head = f'<meta charset="utf-8">{viewport}<title>{html.escape(self.title)}</title>'
        body = f"<main><h1>{html.escape(self.title)}</h1><p>{html.escape(self.lead)}</p>{''.join(self.parts)}</main>"
        write_text(path, f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>\n')


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(words)}</p>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers stand on the right."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells}</tr>{lines}</table></div>'


def picture(path: Path, alternative: str) -> str:
    """An inline PNG; nothing if the file is absent."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'


def details(title: str, body: str) -> str:
    """Preformatted text that unfolds."""
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(body)}</pre></details>"


def _cell(value: object) -> str:
    kind = ' class="number"' if isinstance(value, int | float) else ""
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"<td{kind}>{html.escape(shown)}</td>"
