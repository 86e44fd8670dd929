"""Choosing the next token from a row of logits. Pure numpy; a seed makes it repeatable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.constraint import Constraint
from qtool_runtime.errors import GenerationError
from qtool_runtime.penalties import TokenCounts, penalize_presence, penalize_repetition
from qtool_runtime.truncation import draw, keep_top_k, top_k_mask, top_p_mask

MINIMUM_TEMPERATURE = 1e-3
MAXIMUM_TEMPERATURE = 100.0
MAXIMUM_PENALTY = 100.0
MAXIMUM_BIAS = 100.0


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose among the next tokens. The defaults choose the most likely one.

    The steps run in this order: repetition penalty, presence and frequency penalty, bias, bans, constraint,
    temperature, top-k, top-p, min-p, draw. The first five also apply where the most likely token is taken.

    Attributes:
        temperature: 0 takes the most likely token (the lowest id among equals); otherwise 0.001 to 100, and
            logits are divided by it before a token is drawn.
        top_k: draw among the k most likely tokens; 0 for all.
        top_p: draw among the fewest tokens whose probabilities reach this sum; above 0, up to 1 (all).
        min_p: leave out tokens less likely than this times the most likely one; 0 (none) to 1.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens that are in the
            prompt or the answer; above 0, 1 for none.
        presence_penalty: is subtracted from the logits of tokens that are in the answer; -100 to 100.
        frequency_penalty: is subtracted from the logit of a token as often as it is in the answer; -100 to
            100. Tokens of the prompt count for neither of the two, as in OpenAI's interface.
        logit_bias: token id -> what is added to its logit; -100 to 100.
        banned_ids: token ids that are never chosen.
        seed: a number from 0 to 2**64 - 1 for a repeatable draw, or None.

    Raises:
        GenerationError: a value is out of its range or of another type.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    banned_ids: Sequence[int] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        warm = _is_number(self.temperature) and MINIMUM_TEMPERATURE <= self.temperature <= MAXIMUM_TEMPERATURE
        cold = _is_number(self.temperature) and self.temperature == 0
        _require(warm or cold, "temperature", self.temperature, "0 (greedy), or from 0.001 to 100")
        _require(_is_integer(self.top_k) and self.top_k >= 0, "top_k", self.top_k, "0 (all), or a count")
        _require(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "above 0, up to 1")
        _require(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 to 1")
        penalty = self.repetition_penalty
        _require(
            _is_number(penalty) and 0 < penalty <= MAXIMUM_PENALTY,
            "repetition_penalty", penalty, "above 0, up to 100",
        )  # fmt: skip
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(_is_number(value) and abs(value) <= MAXIMUM_PENALTY, name, value, "from -100 to 100")
        self._check_bias_and_bans()
        seeded = self.seed is None or (_is_integer(self.seed) and 0 <= self.seed < 2**64)
        _require(seeded, "seed", self.seed, "None, or an integer from 0 to 2**64 - 1")

    def _check_bias_and_bans(self) -> None:
        """Checks both and keeps copies, so that a change of the caller's has no effect half-way."""
        bias, banned = self.logit_bias, self.banned_ids
        _require(isinstance(bias, Mapping), "logit_bias", bias, "a mapping of token ids to numbers")
        for token, value in bias.items():
            _require(_is_token(token), "a token of logit_bias", token, "a token id, 0 or more")
            in_range = _is_number(value) and abs(value) <= MAXIMUM_BIAS
            _require(in_range, f"logit_bias[{token}]", value, "from -100 to 100")
        listed = isinstance(banned, Sequence) and not isinstance(banned, str | bytes)
        _require(listed, "banned_ids", banned, "a list of token ids")
        for token in banned:
            _require(_is_token(token), "a banned id", token, "a token id, 0 or more")
        object.__setattr__(self, "logit_bias", dict(bias))
        object.__setattr__(self, "banned_ids", tuple(banned))

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, so that nothing is left to chance."""
        return self.temperature == 0 or self.top_k == 1


class Sampler:
    """Chooses one token after the other, and remembers which have been used.

    Args:
        options: how to choose.
        prompt: token ids that the repetition penalty counts as used.
        candidate: which of several answers to one prompt this is, from 0. Each draws from a part of its own
            of the seed's random numbers; the first draws as an answer alone does.
        constraint: says which tokens can be next, of those that bans leave; None for all.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompt: Sequence[int] | NDArray[np.int64] = (),
        candidate: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        self._options = options
        self._constraint = constraint
        self._random = np.random.Generator(np.random.PCG64(options.seed).jumped(candidate))
        self._used = TokenCounts(prompt)
        self._generated = TokenCounts()
        bias = options.logit_bias
        self._bias = (np.fromiter(bias, np.int64), np.fromiter(bias.values(), np.float32))
        self._banned = np.array(options.banned_ids, np.int64)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Returns the next token's id, and counts it as used.

        Args:
            logits: shape (vocab_size,); left unchanged.

        Raises:
            GenerationError: the logits hold NaN or +infinity, or bans and constraint leave no token.
        """
        token = sample(self.adjust(logits), self._options, self._random)
        self.take(token)
        return token

    def take(self, token: int) -> None:
        """Counts a token of the answer as used that was not chosen here."""
        self._used.add(token)
        self._generated.add(token)
        if self._constraint:
            self._constraint.take(token)

    @property
    def complete(self) -> bool:
        """Whether a constraint says that nothing may follow the tokens taken so far."""
        return self._constraint is not None and self._constraint.complete

    def forced_continuation(self) -> list[int]:
        """Returns tokens that have to follow because of a constraint; `choose` will choose them, too."""
        return self._constraint.forced_continuation() if self._constraint else []

    def adjust(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the logits after penalties, bias, bans and constraint: `logits` itself without any."""
        logits = self._penalize(logits)
        return self._constraint.mask(logits) if self._constraint else logits

    def _penalize(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Applies penalties, bias and bans."""
        options = self._options
        repetition = options.repetition_penalty
        presence, frequency = options.presence_penalty, options.frequency_penalty
        if repetition == 1 and not (presence or frequency or options.logit_bias or options.banned_ids):
            return logits
        logits = logits.copy()
        if repetition != 1:
            penalize_repetition(logits, self._used.ids, repetition)
        if presence or frequency:
            penalize_presence(logits, self._generated.ids, self._generated.counts, presence, frequency)
        biased, bias = self._bias
        logits[biased] += bias
        logits[self._banned] = -np.inf
        return logits


def sample(logits: NDArray[np.float32], options: SamplingOptions, random: np.random.Generator) -> int:
    """Chooses a token id from logits of shape (vocab_size,), after penalties, bias and bans.

    Raises:
        GenerationError: the logits hold NaN or +infinity, or nothing but -infinity.
    """
    best = int(logits.argmax())  # the first NaN, if there is one; the lowest id among equals
    if not math.isfinite(logits[best]):
        raise _not_a_logit(float(logits[best]), best, options)
    if options.greedy:
        return best
    few = 0 < options.top_k <= len(logits) // 4  # to gather more takes longer than all
    ids, scores = keep_top_k(logits, options.top_k) if few else (None, logits)
    # Not above 0, and temperatures are bounded, so neither the product nor the exponential overflows.
    weights = scores - logits[best]
    weights *= np.float32(1 / options.temperature)
    np.exp(weights, out=weights)
    if len(weights) > options.top_k > 0:
        weights *= top_k_mask(logits, options.top_k)
    if options.min_p > 0:  # of the most likely token, which has the weight 1
        mask = weights >= options.min_p
        weights *= mask & top_p_mask(weights, options.top_p) if options.top_p < 1 else mask
    elif options.top_p < 1:
        weights *= top_p_mask(weights, options.top_p)
    place = draw(weights, random.random())
    return place if ids is None else int(ids[place])


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_token(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float | np.floating) and math.isfinite(value))


def _not_a_logit(value: float, token: int, options: SamplingOptions) -> GenerationError:
    if value == -math.inf and options.banned_ids:
        return GenerationError(
            f"banned_ids holds {len(options.banned_ids)} ids and leaves no token to choose",
            hint="Allow at least one token, and one that the constraint allows, if there is one.",
        )
    return GenerationError(
        f"the model returned {value} as the logit of token {token}",
        hint="The artifact is broken or its numbers overflow: compare with a float32 build.",
    )


def _require(valid: bool, name: str, value: Any, range_text: str) -> None:
    if not valid:
        raise GenerationError(f"{name} is {value!r}; valid: {range_text}")
