"""Conversations that have become too long: the oldest turns go first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.errors import ContextLimitError

ANSWER_SHARE = 0.25
"""Part of the context that is left for an answer of any length."""


def without_oldest(messages: Sequence[Mapping[str, Any]], turns: int) -> list[Mapping[str, Any]] | None:
    """Returns a conversation without its oldest turns.

    A turn is a user's message with all that follows it up to the next one. What stands before the first turn,
    such as a system message, stays, and so does the last turn.

    Args:
        messages: {"role": …, "content": …} each.
        turns: how many turns to leave out.

    Returns:
        The messages that stay; None if there are not so many turns that may go.
    """
    starts = [index for index, message in enumerate(messages) if message.get("role") == "user"]
    if turns and turns >= len(starts):
        return None
    return [*messages[: starts[0]], *messages[starts[turns] :]] if turns else list(messages)


class Shortener:
    """Finds the most recent part of a conversation that leaves room for an answer.

    Args:
        messages: the conversation.
        encode: messages to the token ids of a prompt, of shape (count,).
        context: tokens that prompt and answer may have together.
        max_tokens: most tokens of the answer; None for any number.
    """

    def __init__(
        self,
        messages: Sequence[Mapping[str, Any]],
        encode: Callable[[Sequence[Mapping[str, Any]]], NDArray[np.int64]],
        context: int,
        max_tokens: int | None,
    ) -> None:
        self._messages = list(messages)
        self._encode = encode
        self._context = context
        self._max_tokens = max_tokens
        self.dropped = 0
        """Turns that were left out."""

    def first_prompt(self) -> NDArray[np.int64]:
        """Returns the token ids of as much of the conversation as leaves room for the answer.

        Raises:
            ContextLimitError: not even the last turn does.
        """
        answer = int(self._context * ANSWER_SHARE) if self._max_tokens is None else self._max_tokens
        prompt = self._fitting(self._context - answer)
        if prompt is None:
            raise ContextLimitError(
                f"the last turn alone leaves no room for an answer of {answer} tokens in a context of "
                f"{self._context}",
                hint="Shorten it, lower max_tokens, or build the artifact with a longer context.",
            )
        return prompt

    def make_room(self, answer: int) -> NDArray[np.int64] | None:
        """Returns the token ids of a shorter conversation, for an answer that has filled the context.

        Args:
            answer: tokens of the answer so far.

        Returns:
            A prompt that leaves the answer at least a quarter of the context to go on; None if none does.
        """
        self.dropped += 1
        return self._fitting(self._context - answer - int(self._context * ANSWER_SHARE))

    def _fitting(self, limit: int) -> NDArray[np.int64] | None:
        """Drops turns until the prompt has at most `limit` tokens."""
        while (messages := without_oldest(self._messages, self.dropped)) is not None:
            prompt = self._encode(messages)
            if len(prompt) <= limit:
                return prompt
            self.dropped += 1
        return None
