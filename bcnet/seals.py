"""Seals: a SHA-256 of what a file, a line or a record holds, in the same file, so that damage is seen when it is read.

They tell damage, not malice: whoever changes a file on purpose can seal it again.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from bcnet.errors import UserError
from bcnet.lines import append_line
from bcnet.trees import parse_json

KEY = "sha256"  # of a sealed record
_MARK = b"bcnet sha256 "
LENGTH = len(_MARK) + 64
_LINE = 16  # digits of a line's seal
_BLOCK = 1 << 20


def seal(file: BinaryIO) -> None:
    """Append the seal of everything that a file holds, `LENGTH` bytes.

    Args:
        file: open for reading and writing.
    """
    file.seek(0)
    digest = _digest(file, None)
    file.seek(0, 2)
    file.write(_MARK + digest)


def check_seal(path: Path) -> bool:
    """Whether a file has a seal, which then is that of its contents.

    Raises:
        UserError: it is another one, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            length = file.seek(0, 2) - LENGTH
            file.seek(max(0, length))
            end = file.read()
            if length < 0 or not end.startswith(_MARK):
                return False
            file.seek(0)
            if _digest(file, length) != end[len(_MARK) :]:
                raise UserError(f"{path}: damaged: its contents are not those that its checksum was made of")
            return True
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _digest(file: BinaryIO, length: int | None) -> bytes:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK if length is None else min(_BLOCK, length)):
        digest.update(block)
        length = None if length is None else length - len(block)
    return digest.hexdigest().encode()


def sealed_line(entry: Any) -> bytes:
    """An entry of a journal as a line of JSON behind its seal."""
    text = json.dumps(entry)
    return f"{_of_line(text)} {text}\n".encode()


def append_sealed(path: Path, entry: Any) -> None:
    """Add an entry to a journal, with its seal; see `bcnet.lines.append_line`."""
    append_line(path, sealed_line(entry).decode().rstrip("\n"))


def read_line(line: bytes) -> Any:
    """The entry of a line, with its seal or, as older versions wrote it, without.

    Raises:
        ValueError: the line is damaged.
    """
    text = line.decode("utf-8").rstrip("\r")  # of editors on Windows
    if not text.startswith("{"):
        seal, _, text = text.partition(" ")
        if seal != _of_line(text):
            raise ValueError("its checksum is another one")
    return parse_json(text)


def _of_line(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_LINE]


def sealed_record(tree: dict[str, Any]) -> dict[str, Any]:
    """A record's tree of plain values with its seal."""
    return tree | {KEY: _of_tree(tree)}


def read_sealed(tree: Any) -> Any:
    """A tree without its seal, if it has one.

    Raises:
        ValueError: it is another one.
    """
    if not isinstance(tree, dict) or KEY not in tree:
        return tree
    rest = {key: value for key, value in tree.items() if key != KEY}
    if tree[KEY] != _of_tree(rest):
        raise ValueError(f"damaged: its contents are not those that {KEY!r} was made of (whoever changed them takes that entry out)")
    return rest


def _of_tree(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
