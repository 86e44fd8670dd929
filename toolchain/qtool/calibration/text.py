"""The text that a model is calibrated on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtool.checkpoint.files import SourceFile
from qtool.errors import SourceError

WINDOW = 512
"""Tokens that see each other."""
MOST_TOKENS = 8192
"""More of a text is not used: the scales change little after some thousand tokens, and the time grows."""
FEWEST_TOKENS = 256
_MOST_BYTES = 64 << 20
_MOST_CHARACTERS_PER_TOKEN = 16
"""Few tokens are longer; what is behind them would not be used anyway."""
_HINT = "Give a file of plain text in UTF-8."


@dataclass(frozen=True)
class CalibrationText:
    """A text, and what identifies it.

    Attributes:
        name: what errors call it.
        text: the whole text. Names of control tokens, such as "<|im_start|>", are control tokens.
        sha256: of its bytes, in hex.
    """

    name: str
    text: str
    sha256: str

    def windows(self, tokenizer_json: bytes, context: int) -> list[NDArray[np.int64]]:
        """Cuts the text into sequences that are read one by one.

        Args:
            tokenizer_json: the model's tokenizer.
            context: longest sequence that the model is planned for, in tokens.

        Returns:
            Token ids, int64 (`WINDOW`,) each; the last may be shorter.

        Raises:
            SourceError: the text is too short.
        """
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_buffer(tokenizer_json)
        used = self.text[: MOST_TOKENS * _MOST_CHARACTERS_PER_TOKEN]
        ids = np.array(tokenizer.encode(used, add_special_tokens=False).ids[:MOST_TOKENS], np.int64)
        if len(ids) < FEWEST_TOKENS:
            raise SourceError(
                f"the calibration text {self.name} has {len(ids)} tokens; it takes {FEWEST_TOKENS} or more",
                hint="Give a longer text, of the kind that the model will read and write.",
            )
        length = min(WINDOW, context)
        return [ids[start : start + length] for start in range(0, len(ids), length)]


def read_calibration_text(path: str | Path | None) -> CalibrationText:
    """Reads a text.

    Args:
        path: a file of plain UTF-8 text; None for the text that ships with qtool.

    Raises:
        SourceError: it is missing, too large, or not UTF-8.
    """
    if path is None:
        return _text("that ships with qtool", (resources.files(__package__) / "text.txt").read_bytes())
    path = Path(path)
    if path.exists() and not path.is_file():
        raise SourceError(f"the calibration text {path} is not a file", hint=_HINT)
    file = SourceFile.at(path)
    if file.size > _MOST_BYTES:
        raise SourceError(
            f"the calibration text {path} has {file.size} bytes; at most {_MOST_BYTES} are accepted",
            hint=f"Cut it: only its first {MOST_TOKENS} tokens would be used.",
        )
    return _text(str(path), file.read(0, file.size))


def _text(name: str, content: bytes) -> CalibrationText:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"the calibration text {name} is not UTF-8: {error.reason} at byte {error.start}",
            hint=_HINT,
        ) from None
    return CalibrationText(name, text, hashlib.sha256(content).hexdigest())
