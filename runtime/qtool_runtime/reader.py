"""Reading the tokens of an answer, to learn what follows: one forward pass a token, or fewer with drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.engine import Session
from qtool_runtime.prompt import Prompt
from qtool_runtime.speculation import MAXIMUM_DRAFT, Acceptance, PromptLookup

Logits = NDArray[np.float32]


class Reader:
    """Reads a prompt, then the tokens of an answer one after the other, and gives the logits behind each.

    Args:
        session: has read nothing yet.
        speculate: whether to read drafts ahead, if the session can return several rows of logits.

    Attributes:
        cached: tokens of the prompt that did not have to be read.
        drafted: draft tokens that were read.
        accepted: those of them that were right.
    """

    def __init__(self, session: Session, *, speculate: bool) -> None:
        self._session = session
        self._speculate = speculate and session.row_limit > 1
        self._lookup: PromptLookup | None = None
        self._acceptance = Acceptance()
        self._prompt: Prompt | None = None
        self._tokens: list[int] = []  # what was read; the session may hold draft tokens beyond that
        self._guess: list[int] = []
        self._match = 0  # tokens before the guess that matched; 0 if it is not one of the lookup's
        self._right = 0  # tokens of the guess that have turned out right
        self._ahead: Logits = np.empty((0, 0), np.float32)  # logits behind tokens of the guess
        self.cached = 0
        self.drafted = 0
        self.accepted = 0

    def read(self, prompt: Prompt) -> Logits:
        """Reads the prompt, and returns the logits of what follows it: shape (vocab_size,).

        Raises:
            ContextLimitError: the prompt does not fit.
            Cancelled: the session was cancelled.
            DeadlinePassed: the session's time was up.
        """
        logits, self.cached = prompt.read_into(self._session)
        self._prompt, self._tokens = prompt, prompt.token_ids.tolist()
        if self._speculate:
            self._lookup = PromptLookup(prompt.token_ids)
        return logits

    @property
    def room(self) -> int:
        """Tokens that may follow the next one that is read."""
        return self._session.context - len(self._tokens) - 1

    def restart(self, token_ids: NDArray[np.int64]) -> Logits:
        """Forgets everything and reads other tokens; see `read`."""
        assert self._prompt is not None
        self._session.truncate(0)
        self._guess, self._match, self._ahead = [], 0, self._ahead[:0]
        return self.read(self._prompt.instead(token_ids))

    def after(self, token: int, wanted: int, certain: Callable[[], Sequence[int]]) -> Logits:
        """Reads a token, and returns the logits of what follows it.

        Args:
            token: the next token of the answer.
            wanted: how many tokens may still follow it.
            certain: returns the tokens that will follow it, as far as that is known: a better draft than any
                guess. Only called where a draft is wanted.

        Returns:
            Shape (vocab_size,). The next call may overwrite them.

        Raises:
            Cancelled: the session was cancelled.
            DeadlinePassed: the session's time was up.
        """
        if self._lookup is None:
            logits: Logits = self._session.forward([token])[0]
            self._tokens.append(token)
            return logits
        if self._guess[self._right : self._right + 1] == [token]:
            self._right += 1
            if self._right <= len(self._ahead):
                self._lookup.add(token)
                self._tokens.append(token)
                self.accepted += 1
                ahead: Logits = self._ahead[self._right - 1]
                return ahead
        return self._forward(self._lookup, token, wanted, certain)

    def finish(self) -> None:
        """Lets the prefix memory keep what was read."""
        self._drop_drafts()
        if self._prompt is not None:
            self._prompt.remember(self._session, self._tokens)

    def _drop_drafts(self) -> None:
        """Makes the session forget draft tokens that are not part of the answer."""
        if self._session.length > len(self._tokens):
            self._session.truncate(len(self._tokens))

    def _forward(
        self, lookup: PromptLookup, token: int, wanted: int, certain: Callable[[], Sequence[int]]
    ) -> Logits:
        """Judges the last guess, and reads a token with a new one."""
        if self._match:
            self._acceptance.judge(self._match, self._right, wrong=self._right < len(self._guess))
        self._drop_drafts()
        lookup.add(token)
        room = max(0, min(wanted - 1, self._session.row_limit - 1, self.room))
        if known := certain():
            draft = list(known[: min(room, MAXIMUM_DRAFT)])
            self._guess, self._match = draft, 0
        else:
            guess, self._match = lookup.propose(MAXIMUM_DRAFT)
            draft = guess[: min(self._acceptance.worthwhile(self._match), room)] if guess else []
            self._guess = guess[: max(len(draft), 1)]  # one token is judged even if none is read
        self._right = 0
        rows = self._session.forward([token, *draft], rows=1 + len(draft))
        logits: Logits
        logits, self._ahead = rows[0], rows[1:]
        self._tokens.append(token)
        self.drafted += len(draft)
        return logits
