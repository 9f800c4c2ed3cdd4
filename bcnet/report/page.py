"""One HTML page for a run: self-contained (inline images, no requests), readable on a phone."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bcnet.files import write_text
from bcnet.machine import made_by
from bcnet.report.glossary import explain

_STYLE = """
:root { color-scheme: light dark; --text: #0f172a; --ground: #f8fafc; --card: #fff; --line: #e2e8f0; --code: #f1f5f9; --quiet: #475569; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e2e8f0; --ground: #0b1120; --card: #172033; --line: #334155; --code: #0f172a; --quiet: #94a3b8; }
  a { color: #93c5fd; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); margin: 0; }
main { max-width: 54rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.2rem; margin: 1rem 0; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0; background: #fff; border-radius: .4rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; }
td, th { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--code); padding: .8rem; border-radius: .4rem; overflow-x: auto; font-size: .8rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; } summary, footer { color: var(--quiet); } summary { cursor: pointer; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; } footer { font-size: .85rem; }
@media (max-width: 640px) {
  main { padding: 1rem .6rem 3rem; } section { padding: .8rem .9rem; } table { font-size: .8rem; }
  td, th { padding-right: .45rem; } td:first-child { overflow-wrap: anywhere; }
  table.wide, .wide tbody, .wide tr { display: block; } .wide th { display: none; }
  .wide tr { padding: .4rem 0; border-bottom: 1px solid var(--line); }
  .wide td { display: flex; justify-content: space-between; gap: 1rem; padding: .1rem 0; border: 0; text-align: right; }
  .wide td::before { content: attr(data-label); color: var(--quiet); text-align: left; }
}
"""


_WIDE = 6  # columns of a table whose rows become blocks on narrow screens


class Page:
    """Sections of text, tables and pictures, written as one file that explains its words and says how it was made.

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
        parts = f"<h1>{html.escape(self.title)}</h1><p>{html.escape(self.lead)}</p>{''.join(self.parts)}"
        words = explain(parts)
        glossary = f"<section><h2>What the words mean</h2><dl>{words}</dl></section>" if words else ""
        body = f"<main>{parts}{glossary}<footer><p>{html.escape(made_by())}</p></footer></main>"
        write_text(path, f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>\n')


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(words)}</p>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers stand on the right. On narrow screens a row of many columns is a block of lines, each behind its column's name."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(_cell(*pair) for pair in zip(row, header, strict=True))}</tr>" for row in rows)
    kind = ' class="wide"' if len(header) >= _WIDE else ""
    return f'<div class="scroll"><table{kind}><tr>{cells}</tr>{lines}</table></div>'


def picture(path: Path, alternative: str) -> str:
    """An inline PNG, on narrow screens its narrow form if it has one (`narrow_form`); nothing if the file is absent."""
    if not path.is_file():
        return ""
    narrow = narrow_form(path)
    source = f'<source media="(max-width: 640px)" srcset="{_inline(narrow)}">' if narrow.is_file() else ""
    return f'<picture>{source}<img alt="{html.escape(alternative)}" src="{_inline(path)}"></picture>'


def narrow_form(path: Path) -> Path:
    """Where the form of a picture for narrow screens stands, its panels below each other."""
    return path.with_stem(f"{path.stem}-narrow")


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def links(folder: Path, pages: Mapping[str, str]) -> str:
    """A line of links to other pages of a folder, those that are there.

    Args:
        folder: of the page that links.
        pages: file name -> what to call it.
    """
    there = [f'<a href="{html.escape(file)}">{html.escape(name)}</a>' for file, name in pages.items() if (folder / file).is_file()]
    return f"<p>{' &middot; '.join(there)}</p>" if there else ""


def commands(lines: Sequence[str]) -> str:
    """Commands to paste."""
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def details(title: str, body: str) -> str:
    """Preformatted text that unfolds."""
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(body)}</pre></details>"


def _cell(value: object, column: str) -> str:
    kind = ' class="number"' if isinstance(value, int | float) else ""
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    return f'<td{kind} data-label="{html.escape(column)}">{html.escape(shown)}</td>'
