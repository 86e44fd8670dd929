"""Checks of what an application asks for, made before any work. `SamplingOptions` checks its own fields."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.errors import ContextLimitError, GenerationError
from qtool_runtime.sampling import SamplingOptions

MAXIMUM_LOGPROBS = 20
"""Alternatives beside each token, as in OpenAI's interface."""

MAXIMUM_CANDIDATES = 64
"""Each answer in progress holds keys and values of its own."""


WHEN_FULL = ("error", "stop", "drop_oldest")
"""What can be done when the context is full."""


def check_context(context: int | None, planned: int) -> int:
    """Returns the context to use: `planned` tokens unless fewer are asked for.

    Raises:
        ContextLimitError: more are asked for.
        GenerationError: `context` is not a count.
    """
    if context is None:
        return planned
    if not _is_count(context, 1):
        raise GenerationError(f"context is {context!r}; valid: None, or 1 to {planned} tokens")
    if context > planned:
        raise ContextLimitError(
            f"context is {context} tokens; the artifact was planned for at most {planned}",
            hint="Ask for less, or build the artifact with a longer context.",
        )
    return context


def check_prefix_memory(limit: int | None, planned: int) -> int:
    """Returns the bound of the prefix memory in bytes: `planned` unless another one is asked for.

    Raises:
        GenerationError: it is not a count.
    """
    if limit is None:
        return planned
    if not _is_count(limit, 0):
        raise GenerationError(f"prefix_memory is {limit!r}; valid: None, 0 for none, or a number of bytes")
    return int(limit)


def check_when_full(when_full: Any, *, chat: bool) -> None:
    """Refuses an unknown policy, and turns to be dropped where there are none.

    Raises:
        GenerationError: it is not a policy, or not one for a plain prompt.
    """
    if when_full not in WHEN_FULL:
        raise GenerationError(f"when_full is {when_full!r}; valid: {', '.join(WHEN_FULL)}")
    if when_full == "drop_oldest" and not chat:
        raise GenerationError(
            "when_full is 'drop_oldest', but a plain prompt has no turns; valid: error, stop",
            hint="Use chat() for conversations.",
        )


def check_max_tokens(max_tokens: Any) -> int | None:
    """Returns `max_tokens`. An answer has at least one token.

    Raises:
        GenerationError: it is not a count.
    """
    if max_tokens is not None and not _is_count(max_tokens, 1):
        raise GenerationError(f"max_tokens is {max_tokens!r}; valid: None, or a count from 1")
    return None if max_tokens is None else int(max_tokens)


def check_length(prompt: int, max_tokens: int | None, context: int, *, cut: bool) -> None:
    """Refuses a generation that cannot fit.

    Args:
        prompt: its tokens.
        max_tokens: most tokens of the answer; None for as many as fit.
        context: most tokens of both.
        cut: whether the answer may end before `max_tokens`, where the context ends.

    Raises:
        ContextLimitError: prompt and answer pass the context.
        GenerationError: the prompt is empty, or `max_tokens` is not a count.
    """
    check_max_tokens(max_tokens)
    if prompt == 0:
        raise GenerationError("the prompt has no tokens", hint="Give at least one.")
    if prompt + (1 if cut else max_tokens or 1) > context:
        raise ContextLimitError(
            f"the prompt has {prompt} tokens and max_tokens is {max_tokens}; together at most {context} fit",
            hint="Shorten the prompt, lower max_tokens, or build the artifact with a longer context.",
        )


def check_token_ids(tokens: Any, vocab_size: int) -> NDArray[np.int64]:
    """Returns a prompt of token ids as an array of shape (count,).

    Raises:
        GenerationError: it is not a sequence of token ids, or one is outside the vocabulary.
    """
    array = np.asarray(tokens)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise GenerationError(f"the prompt is {tokens!r:.80}; valid: text, or a sequence of token ids")
    outside = array[(array < 0) | (array >= vocab_size)]
    if outside.size:
        raise GenerationError(f"the prompt has the token id {outside[0]}; valid: 0 to {vocab_size - 1}")
    return array.astype(np.int64)


def check_stop_ids(stop_ids: Sequence[int]) -> Sequence[int]:
    """Returns the ids.

    Raises:
        GenerationError: one is not a token id.
    """
    for token in stop_ids:
        if not _is_count(token, 0):
            raise GenerationError(f"a stop id is {token!r}; valid: a token id, 0 or more")
    return stop_ids


def check_vocabulary(options: SamplingOptions, vocab_size: int) -> None:
    """Refuses a bias or a ban of a token that the model does not have, and a ban of all that it has.

    Raises:
        GenerationError: an id is too large, or no token is left.
    """
    ids: dict[str, Iterable[int]] = {"logit_bias": options.logit_bias, "banned_ids": options.banned_ids}
    for name, tokens in ids.items():
        if (largest := max(tokens, default=0)) >= vocab_size:
            raise GenerationError(f"{name} has the token id {largest}; valid: 0 to {vocab_size - 1}")
    if len(set(options.banned_ids)) == vocab_size:
        raise GenerationError(
            f"banned_ids holds all {vocab_size} tokens of the model", hint="Allow at least one token."
        )


def check_deadline(deadline: float | None) -> None:
    """Refuses what is not a time.

    Raises:
        GenerationError: `deadline` is not a number of seconds above 0.
    """
    if deadline is not None and not _is_positive(deadline):
        raise GenerationError(f"deadline is {deadline!r}; valid: None, or seconds above 0")


def check_threshold(name: str, threshold: float | None) -> None:
    """Refuses what is not a threshold of a health check.

    Raises:
        GenerationError: it is not a number above 0.
    """
    if threshold is not None and not _is_positive(threshold):
        raise GenerationError(f"{name} is {threshold!r}; valid: None, or a number above 0")


def check_on_answer(on_answer: Any) -> None:
    """Refuses what cannot be called.

    Raises:
        GenerationError: it is neither None nor a function.
    """
    if on_answer is not None and not callable(on_answer):
        raise GenerationError(f"on_answer is {on_answer!r}; valid: None, or a function of one result")


def check_logprobs(logprobs: int | None) -> None:
    """Refuses what is not a number of alternatives.

    Raises:
        GenerationError: `logprobs` is out of its range.
    """
    if logprobs is not None and not (_is_count(logprobs, 0) and logprobs <= MAXIMUM_LOGPROBS):
        raise GenerationError(
            f"logprobs is {logprobs!r}; valid: None, or 0 to {MAXIMUM_LOGPROBS} alternatives for each token"
        )


def check_candidates(candidates: int, options: SamplingOptions) -> None:
    """Refuses a wrong number of answers, and several answers that would all be the same.

    Raises:
        GenerationError: `candidates` is out of its range, or above 1 without sampling.
    """
    if not (_is_count(candidates, 1) and candidates <= MAXIMUM_CANDIDATES):
        raise GenerationError(f"candidates is {candidates!r}; valid: 1 to {MAXIMUM_CANDIDATES}")
    if candidates > 1 and options.greedy:
        raise GenerationError(
            f"candidates is {candidates}, but the most likely token is always taken (temperature "
            f"{options.temperature}, top_k {options.top_k}), so that all would be the same; valid: 1",
            hint="Set a temperature above 0, and a top_k other than 1.",
        )


def check_batch(prompts: int, at_once: int, candidates: int) -> None:
    """Refuses a batch without prompts, or with several answers to each.

    Raises:
        GenerationError: there is no prompt, `at_once` is out of its range, or `candidates` is above 1.
    """
    if prompts == 0:
        raise GenerationError("there are no prompts", hint="Give at least one.")
    if not (_is_count(at_once, 1) and at_once <= MAXIMUM_CANDIDATES):
        raise GenerationError(f"at_once is {at_once!r}; valid: 1 to {MAXIMUM_CANDIDATES}")
    if prompts > 1 and candidates != 1:
        raise GenerationError(
            f"candidates is {candidates} for each of {prompts} prompts; valid: 1",
            hint="Repeat the prompts instead, or ask for candidates prompt by prompt.",
        )


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and math.isfinite(value) and bool(value > 0)


def _is_count(value: Any, lowest: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= lowest)
