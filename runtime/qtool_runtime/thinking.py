"""A limit to how long a model reasons before it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.answer import END_THINK, TAGS, THINK, AnswerParser
from qtool_runtime.errors import GenerationError
from qtool_runtime.text import Tokenizer

CLOSING = f"\n{END_THINK}\n\n"
"""What ends reasoning that has become too long: as Qwen's models end it themselves."""


class ThinkingBudget:
    """Closes the reasoning of an answer after a number of tokens. The generation loop calls it.

    Tokens count from the one behind `<think>`. Those of a closing tag that the model writes itself do not,
    if the tag is one token.

    Args:
        budget: most tokens of reasoning.
        tokenizer: the model's.
        opened: the prompt ended with `<think>`.
    """

    def __init__(self, budget: int, tokenizer: Tokenizer, *, opened: bool) -> None:
        self._left = budget
        self._closing = tokenizer.encode(CLOSING, add_special_tokens=False)
        self._decoder = tokenizer.new_decoder(visible=TAGS)
        self._parser = AnswerParser(opened=opened)
        self._over = False

    def __call__(self, token_id: int) -> Sequence[int]:
        """Returns the ids that have to follow `token_id`: none, or once those of the closing tag."""
        if self._over:
            return ()
        counted = self._parser.reasoning
        for _ in self._parser.push(self._decoder.push(token_id)):
            pass
        if not self._parser.reasoning:
            self._over = self._parser.started
            return ()
        self._left -= counted
        self._over = self._left <= 0
        return self._closing if self._over else ()


def is_opened(prompt: str) -> bool:
    """Returns whether a rendered prompt ends within reasoning, as some templates leave it."""
    return prompt.rstrip().endswith(THINK)


def is_closed(prompt: str) -> bool:
    """Returns whether a rendered prompt ends behind reasoning, as templates leave it that ask for none."""
    return prompt.rstrip().endswith(END_THINK)


def close_thinking(prompt: NDArray[np.int64], tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Returns token ids of a prompt that ended within reasoning, with the closing tag behind them."""
    return np.concatenate([prompt, tokenizer.encode(CLOSING, add_special_tokens=False)])


def check_thinking(budget: Any, enable_thinking: bool | None) -> bool | None:
    """Returns what to tell the template: with a budget of 0, not to think.

    Raises:
        GenerationError: the budget is not a count, or is 0 where thinking was asked for.
    """
    if budget is None:
        return enable_thinking
    if not isinstance(budget, int | np.integer) or isinstance(budget, bool) or budget < 0:
        raise GenerationError(
            f"thinking_budget is {budget!r}; valid: None, or a count of tokens from 0 (no thinking)"
        )
    if budget == 0 and enable_thinking:
        raise GenerationError("thinking_budget is 0 and enable_thinking is True; valid: only one of them")
    return False if budget == 0 else enable_thinking
