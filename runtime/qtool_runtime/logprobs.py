"""How likely the model found the tokens of an answer, as records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.truncation import keep_top_k


@dataclass(frozen=True)
class TokenLogprob:
    """A token id and the natural logarithm of its probability; `Tokenizer.token_bytes` gives its text."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class TokenLogprobs:
    """One token of an answer, beside what else the model considered.

    All are of the model's own distribution: the softmax of the logits that it returned, before penalties,
    bias, bans, temperature and truncation.

    Attributes:
        token_id: the token of the answer.
        logprob: natural logarithm of its probability.
        alternatives: the most likely tokens, in descending order (of equals, the lowest id first); the token
            of the answer is among them if it is one of the most likely.
    """

    token_id: int
    logprob: float
    alternatives: tuple[TokenLogprob, ...]


def token_logprobs(logits: NDArray[np.float32], token_id: int, alternatives: int) -> TokenLogprobs:
    """Returns the record of one token.

    Args:
        logits: what the model returned, of shape (vocab_size,).
        token_id: the token that was chosen.
        alternatives: how many of the most likely tokens to name; 0 for none.
    """
    largest = logits.max()
    normalizer = float(largest) + float(np.log(np.exp(logits - largest).sum()))
    if alternatives:
        ids, scores = keep_top_k(logits, alternatives)
        order = np.lexsort((ids, -scores))
        ids, scores = ids[order], scores[order]
    else:
        ids, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    named = zip(ids.tolist(), scores.tolist(), strict=True)
    return TokenLogprobs(
        token_id,
        float(logits[token_id]) - normalizer,
        tuple(TokenLogprob(id, score - normalizer) for id, score in named),
    )
