"""A grammar for the answer of a model that may reason before it answers."""

from __future__ import annotations

from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.answer import END_THINK, TAGS, THINK
from qtool_runtime.constraint import GrammarConstraint
from qtool_runtime.text import Tokenizer


class _Stage(Enum):
    START = auto()  # nothing has been said
    REASONING = auto()
    GAP = auto()  # behind the closing tag, where newlines belong to neither reasoning nor answer
    ANSWER = auto()


class AnswerConstraint:
    """Holds a grammar back while the model reasons.

    The first token of an answer is either the start of reasoning or what the grammar allows. Reasoning is
    free, only that it cannot be the end of the answer. Behind its closing tag, two newlines are allowed
    before the grammar begins, as Qwen's models write them.

    Args:
        grammar: what the answer has to follow, at its start.
        tokenizer: the model's.
        opened: the prompt ended within reasoning.
    """

    def __init__(self, grammar: GrammarConstraint, tokenizer: Tokenizer, *, opened: bool) -> None:
        self._grammar = grammar
        self._tokenizer = tokenizer
        self._endings = list(grammar.endings)
        self._decoder = tokenizer.new_decoder(visible=TAGS)
        self._text = ""  # the end of the reasoning so far
        self._stage = _Stage.REASONING if opened else _Stage.START
        self._opening = tokenizer.single_token(THINK)
        self._newlines = {
            token: count for count in (1, 2) if (token := tokenizer.single_token("\n" * count)) is not None
        }
        self._newlines_left = 2
        self._free: NDArray[np.float32] | None = None

    @property
    def complete(self) -> bool:
        """Whether the answer has to end here: nothing may follow."""
        return self._stage is _Stage.ANSWER and self._grammar.complete

    def mask(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Constraint.mask`."""
        match self._stage:
            case _Stage.START:
                return self._grammar.mask(logits, () if self._opening is None else (self._opening,))
            case _Stage.REASONING:
                self._free = np.empty_like(logits) if self._free is None else self._free
                np.copyto(self._free, logits)
                self._free[self._endings] = -np.inf
                return self._free
            case _Stage.GAP:
                left = self._newlines_left
                return self._grammar.mask(logits, [t for t, count in self._newlines.items() if count <= left])
            case _Stage.ANSWER:
                return self._grammar.mask(logits)

    def take(self, token: int) -> None:
        """See `Constraint.take`."""
        if self._stage is _Stage.REASONING:
            self._reason(token)
        elif self._stage is _Stage.START and token == self._opening:
            self._stage = _Stage.REASONING
        elif self._stage is _Stage.GAP and token in self._newlines:
            self._newlines_left -= self._newlines[token]
        else:
            self._stage = _Stage.ANSWER
            self._grammar.take(token)

    def forced_continuation(self) -> list[int]:
        """See `Constraint.forced_continuation`."""
        return self._grammar.forced_continuation() if self._stage is _Stage.ANSWER else []

    def _reason(self, token: int) -> None:
        """Looks for the closing tag in the text: it may be one token or several."""
        self._text += self._decoder.push(token)
        _, found, after = self._text.partition(END_THINK)
        self._text = self._text[1 - len(END_THINK) :]
        if not found:
            return
        self._stage = _Stage.GAP
        start = after.lstrip("\n")
        self._newlines_left -= len(after) - len(start)
        for begun in self._tokenizer.encode_exact(start):  # the answer began in the token that ended the tag
            self.take(begun)
