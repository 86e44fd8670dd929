"""Whether a calibration text is of the kind that a model reads, judged by how it differs from qtool's own.

A text may be right for one application and wrong for another, so nothing here is refused. Each doubt says
what was counted, and what that does. Figures for many languages and kinds of text: tests/bench/NOTES.md.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

import numpy as np

from qtool.calibration.text import CalibrationText, read_calibration_text

LEAST_BYTES_PER_TOKEN = 2 / 3
"""Of what the model's tokenizer makes of qtool's own text. English, Chinese, Russian and code have 0.9 and
more, languages that a model does not know and base64 0.5 and less."""
FEWEST_DISTINCT_TOKENS = 256
LEAST_LATIN = 0.25
"""Of the letters; qtool's own text has 0.98."""


class CalibrationWarning(UserWarning):
    """A calibration text that is probably not what the model will read and write."""


def doubts(text: CalibrationText, tokenizer_json: bytes) -> list[str]:
    """Returns what speaks against a text, in whole sentences; nothing for the text that ships with qtool.

    Args:
        text: the text.
        tokenizer_json: the model's tokenizer.
    """
    own = read_calibration_text(None)
    if text.sha256 == own.sha256:
        return []
    ids, size = text.tokens(tokenizer_json)
    own_ids, own_size = own.tokens(tokenizer_json)
    what = f"the calibration text {text.name}"
    found = []
    if (each := size / len(ids)) < LEAST_BYTES_PER_TOKEN * (usual := own_size / len(own_ids)):
        found.append(
            f"{what} has {each:.1f} bytes a token, qtool's own has {usual:.1f}: the model's vocabulary has"
            " few words of this language or kind of text, so the model hardly knows it"
        )
    if (distinct := len(np.unique(ids))) < FEWEST_DISTINCT_TOKENS:
        found.append(
            f"{what} has only {distinct} different tokens: it says the same over and over, and what other"
            " texts need is not measured"
        )
    if (latin := _share_of_latin(text.text)) is not None and latin < LEAST_LATIN:
        found.append(
            f"{what} has {latin:.0%} Latin letters, qtool's own has {_share_of_latin(own.text):.0%}:"
            " English, code and the JSON of tool calls are hardly measured, and may lose more than otherwise"
        )
    return found


def _share_of_latin(text: str) -> float | None:
    """Returns the share of Latin letters among all; None where there are no letters."""
    letters = Counter(character for character in text if character.isalpha())
    latin = sum(
        count for character, count in letters.items() if unicodedata.name(character, "").startswith("LATIN")
    )
    return latin / letters.total() if letters else None
