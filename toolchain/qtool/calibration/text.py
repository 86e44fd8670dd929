"""The text that a model is calibrated on."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtool.errors import SourceError
from qtool.plain_text import PlainText, plain_text, read_plain_text

WINDOW = 512
"""Tokens that see each other."""
WINDOWS_AT_ONCE = 2
"""Windows that a layer reads in one run: Hessians are added up less often, activations take more memory."""
MOST_TOKENS = 16384
"""More of a text is not used: results change little after some thousand tokens, and the time grows."""
FEWEST_TOKENS = 256
FEWEST_TOKENS_FOR_WEIGHTS = 2048
"""A matrix has thousands of columns, and how they go together is known from the text alone."""
PROBED_WINDOWS, PROBED_TOKENS = 2, 96
"""What sensitivities of matrices are measured on: the first tokens of the first and the last window."""
_MOST_CHARACTERS_PER_TOKEN = 16
"""Few tokens are longer; what is behind them would not be used anyway."""
_KIND = "calibration text"


class CalibrationText(PlainText):
    """A text that models read while a build measures them."""

    def tokens(self, tokenizer_json: bytes) -> tuple[NDArray[np.int64], int]:
        """Returns the ids of the tokens that are used, and the bytes of text that they stand for."""
        from tokenizers import Tokenizer

        used = self.text[: MOST_TOKENS * _MOST_CHARACTERS_PER_TOKEN]
        encoding = Tokenizer.from_buffer(tokenizer_json).encode(used, add_special_tokens=False)
        ids = np.array(encoding.ids[:MOST_TOKENS], np.int64)
        end = encoding.offsets[len(ids) - 1][1] if len(ids) else 0
        return ids, len(used[:end].encode())

    def windows(self, tokenizer_json: bytes, context: int, fewest: int = FEWEST_TOKENS) -> NDArray[np.int64]:
        """Cuts the text into sequences that are read one by one; what is left at its end is not used.

        Args:
            tokenizer_json: the model's tokenizer.
            context: longest sequence that the model is planned for, in tokens.
            fewest: how many tokens it takes.

        Returns:
            Token ids, int64 (windows, tokens), of at most `WINDOW` tokens each.

        Raises:
            SourceError: the text is too short.
        """
        ids, _ = self.tokens(tokenizer_json)
        if len(ids) < fewest:
            raise SourceError(
                f"the calibration text {self.name} has {len(ids)} tokens; it takes {fewest} or more",
                hint="Give a longer text, of the kind that the model will read and write.",
            )
        length = min(WINDOW, context, len(ids))
        return ids[: len(ids) // length * length].reshape(-1, length)


def read_calibration_text(path: str | Path | None) -> CalibrationText:
    """Reads a text.

    Args:
        path: a file of plain UTF-8 text; None for the text that ships with qtool.

    Raises:
        SourceError: it is missing, too large, empty, or not plain text.
    """
    if path is None:
        content = (resources.files(__package__) / "text.txt").read_bytes()
        text = plain_text("that ships with qtool", content, _KIND)
    else:
        text = read_plain_text(path, _KIND)
    return CalibrationText(text.name, text.text, text.sha256)
