"""Plain text of the user's, or of ours, that a model reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from qtool.checkpoint.files import SourceFile, shown
from qtool.errors import SourceError

MOST_BYTES = 64 << 20
_HINT = "Give a file of plain text in UTF-8."


@dataclass(frozen=True)
class PlainText:
    """A text, and what identifies it.

    Attributes:
        name: what errors and reports call it.
        text: the whole text. Names of control tokens, such as "<|im_start|>", are control tokens.
        sha256: of its bytes, in hex.
    """

    name: str
    text: str
    sha256: str


def read_plain_text(path: str | Path, kind: str = "text") -> PlainText:
    """Reads a file of plain text.

    Args:
        path: the file.
        kind: what errors call it.

    Raises:
        SourceError: it is missing, too large, empty, or not plain text.
    """
    path = Path(path)
    what = f"the {kind} {shown(str(path), 200)}"
    if path.exists() and not path.is_file():
        raise SourceError(f"{what} is not a file", hint=_HINT)
    file = SourceFile.at(path)
    if file.size > MOST_BYTES:
        raise SourceError(
            f"{what} has {file.size:,} bytes; at most {MOST_BYTES:,} are accepted",
            hint="Cut it: only its beginning would be used.",
        )
    return plain_text(path.name, file.read(0, file.size), kind)


def plain_text(name: str, content: bytes, kind: str = "text") -> PlainText:
    """Decodes a text.

    Args:
        name: what errors and reports call it.
        content: its bytes.
        kind: what errors call texts like it.

    Raises:
        SourceError: it is empty, binary, or not UTF-8.
    """
    what = f"the {kind} {shown(name, 200)}"
    if (zero := content.find(b"\0")) >= 0:
        raise SourceError(f"{what} is binary: its byte {zero} is zero", hint=_HINT)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{what} is not UTF-8: {error.reason} at byte {error.start}", hint=_HINT) from None
    if not text.strip():
        raise SourceError(f"{what} is empty", hint=_HINT)
    return PlainText(name, text, hashlib.sha256(content).hexdigest())
