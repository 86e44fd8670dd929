"""The text that models are compared on, as token ids."""

from __future__ import annotations

from importlib import resources

import numpy as np

from qtool.errors import GenerationError, SourceError
from qtool.evaluate.divergence import Ids
from qtool.plain_text import PlainText, plain_text
from qtool_runtime.text import Tokenizer

DEFAULT_TOKENS = 4096
FEWEST_TOKENS = 64
"""Fewer say nothing about a model."""
_NANO_CONVERSATIONS = 120
_MOST_CHARACTERS_PER_TOKEN = 16
"""Few tokens are longer; what is behind them would not be used anyway."""


def own_text() -> PlainText:
    """Returns the text that ships with qtool: prose, conversations, code and tables, in several languages."""
    return plain_text("qtool's own text", (resources.files(__package__) / "text.txt").read_bytes())


def nano_text() -> PlainText:
    """Returns conversations that the embedded model was not trained on. It knows no other language."""
    from qtool.nano.corpus import held_out
    from qtool.nano.template import render

    text = "".join(
        render(example.messages, thinking=example.thinking, tools=example.tools)
        + f"{example.completion}<|im_end|>\n"
        for example in held_out(_NANO_CONVERSATIONS)
    )
    return plain_text("nano's held-out conversations", text.encode())


def check_count(tokens: int | None) -> None:
    """Refuses a wrong number of tokens.

    Raises:
        GenerationError: it is too small.
    """
    if tokens is not None and tokens < FEWEST_TOKENS:
        raise GenerationError(f"tokens is {tokens}; valid: counts from {FEWEST_TOKENS}")


def evaluation_tokens(text: PlainText, tokenizer: Tokenizer, count: int | None) -> Ids:
    """Returns the beginning of a text, as token ids.

    Args:
        text: the text.
        tokenizer: the model's.
        count: predictions to make; None for `DEFAULT_TOKENS`, or fewer where the text is shorter.

    Returns:
        One id more than there are predictions, int64.

    Raises:
        SourceError: the text is too short.
    """
    wanted = count or DEFAULT_TOKENS
    used = text.text[: (wanted + 1) * _MOST_CHARACTERS_PER_TOKEN]
    ids = np.array(tokenizer.encode(used, add_special_tokens=False)[: wanted + 1], np.int64)
    least = FEWEST_TOKENS if count is None else count
    if len(ids) <= least:
        raise SourceError(
            f"the text {text.name} is too short: it has {len(ids)} tokens, {least + 1} are needed to predict"
            f" {least}",
            hint="Give a longer text, of the kind that the model will read and write"
            + (", or fewer --tokens." if count is not None and len(ids) > FEWEST_TOKENS else "."),
        )
    return ids
