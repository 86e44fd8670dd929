"""Prompt-lookup drafts: guesses at the next tokens, read together with the next one in a single forward pass.

What a model writes is often there already: code that it edits, a text that it sums up, a name. So where the
last tokens have occurred before, what followed them is a draft of what follows now (prompt lookup decoding,
a case of speculative decoding, Leviathan et al. 2023, arXiv:2211.17192). A pass over a few tokens takes
little longer than over one, because reading the weights is what takes the time.

Every token is still chosen from the model's own logits, one after the other; a draft only decides whether
they were computed ahead (see `reader.py`). So sampling, penalties and seeds work as without drafts, and the
course of an answer depends on nothing but its tokens. What may differ is rounding: onnxruntime's own kernels
sum up in another order for several rows than for one (on x86-64 its attention does), and with activations
rounded to 8 bits that can decide between two tokens that are about equally likely. The answer is then
another one, as good as the first. The kernels of qtool-kernels give each row the same bits alone and among
others, and with ONNX Runtime's own a model can be loaded so (`exact_drafts.py`): then answers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROW_COST = 0.2
"""What each further row adds to a forward pass, relative to a pass over one. Measured with int4 on x86-64:
0.0 to 0.12 for the second row, 0.15 to 0.2 for each up to the eighth. A constant and not a measurement
at run time, so that the same prompt takes the same course each time."""

MAXIMUM_DRAFT = 8
"""Tokens; the gain grows hardly any more beyond that."""

MATCH_LENGTHS = 5
"""Matches of 2, 3, 4, 5 and more tokens are judged apart: long ones are right more often."""

CANDIDATES = 8
"""Earlier occurrences, the latest ones. The one with the longest match is taken; of equals, the one with most
tokens behind it, for in a loop the latest has only one."""

MEMORY = 0.9
"""Weight of all earlier drafts when another one has been judged."""


class PromptLookup:
    """Finds what followed earlier occurrences of the last tokens.

    Args:
        token_ids: the sequence so far.
    """

    def __init__(self, token_ids: Sequence[int] | NDArray[np.int64]) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, int], list[int]] = {}
        for token in np.asarray(token_ids, np.int64).tolist():
            self.add(token)

    def add(self, token: int) -> None:
        """Appends a token. The pair that it completes becomes known only when another token follows it."""
        if len(self._tokens) >= 2:
            pair = (self._tokens[-2], self._tokens[-1])
            self._places.setdefault(pair, []).append(len(self._tokens))
        self._tokens.append(token)

    def propose(self, limit: int) -> tuple[list[int], int]:
        """Returns a draft of at most `limit` tokens, and how many tokens before it match (at least 2).

        The draft is empty where the last two tokens have not occurred before.
        """
        places = self._places.get((self._tokens[-2], self._tokens[-1]), ()) if len(self._tokens) > 1 else ()
        best, longest, most = 0, 0, 0
        for place in reversed(places[-CANDIDATES:]):
            length = self._match(place)
            followers = min(len(self._tokens) - place, limit)
            if (length, followers) > (longest, most):
                best, longest, most = place, length, followers
        return self._tokens[best : best + limit] if longest else [], longest

    def _match(self, place: int) -> int:
        """How many tokens before `place` are the last ones, counted up to the longest that is told apart."""
        length = 2
        while length <= MATCH_LENGTHS and length < place:
            if self._tokens[place - length - 1] != self._tokens[-length - 1]:
                break
            length += 1
        return length


class Acceptance:
    """How often draft tokens were right, for each length of match, and how long a draft pays.

    Drafts that were not read count as well: what they would have brought is known as soon as the tokens are.
    So judging costs nothing, and drafting starts again when the text begins to repeat itself.
    """

    def __init__(self) -> None:
        # Starts between: right once and wrong once. A draft then pays only after a match of some length.
        self._right = [0.25 + 0.25 * index for index in range(MATCH_LENGTHS)]
        self._judged = [1.0 + 0.25 * index for index in range(MATCH_LENGTHS)]

    def probability(self, match: int) -> float:
        """Returns the estimated probability that the next draft token behind a match is right."""
        index = self._index(match)
        return self._right[index] / self._judged[index]

    def judge(self, match: int, right: int, wrong: bool) -> None:
        """Counts a draft: its first `right` tokens were right, and the next one was not if `wrong`."""
        index = self._index(match)
        self._right[index] = MEMORY * self._right[index] + right
        self._judged[index] = MEMORY * self._judged[index] + right + wrong

    def worthwhile(self, match: int) -> int:
        """Returns the length of draft that promises most tokens for the time: 0 if no draft pays.

        A draft of n tokens brings 1 + p + … + p**n tokens for a pass that takes 1 + n * ROW_COST.
        """
        probability = self.probability(match)
        best, most, tokens, gain = 0, 1.0, 1.0, 1.0
        for length in range(1, MAXIMUM_DRAFT + 1):
            gain *= probability
            tokens += gain
            if tokens / (1 + length * ROW_COST) > most:
                best, most = length, tokens / (1 + length * ROW_COST)
        return best

    def _index(self, match: int) -> int:
        return min(match, MATCH_LENGTHS + 1) - 2
