"""Sampling against slow, obvious references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qtool_runtime.errors import GenerationError
from qtool_runtime.logprobs import token_logprobs
from qtool_runtime.penalties import TokenCounts, penalize_presence, penalize_repetition
from qtool_runtime.sampling import Sampler, SamplingOptions, sample
from qtool_runtime.truncation import draw, keep_top_k, top_k_mask, top_p_mask

LOGITS = hnp.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.integers(-8, 8).map(lambda value: value / 2) | st.floats(-50, 50, width=32),
)
"""Halves, so that equal values are common, and anything else."""


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@given(LOGITS)
def test_greedy_takes_the_lowest_id_of_the_largest(logits: np.ndarray) -> None:
    best = max(range(len(logits)), key=lambda token: (logits[token], -token))
    for options in (SamplingOptions(), SamplingOptions(temperature=0.5, top_k=1)):
        assert sample(logits, options, generator()) == best


@given(LOGITS, st.integers(0, 70))
def test_top_k_keeps_what_a_full_sort_would(logits: np.ndarray, top_k: int) -> None:
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    ids, kept = keep_top_k(logits, top_k)
    assert ids.tolist() == sorted(order[: top_k or None])
    assert kept.tolist() == logits[ids].tolist()


@given(st.integers(0, 2**32), st.integers(1, 2000), st.integers(1, 40), st.sampled_from([0, 1, 5]))
def test_top_k_of_many_logits(seed: int, size: int, top_k: int, decimals: int) -> None:
    """Enough of them that they are folded into columns; rounded, so that many are equal."""
    logits = generator(seed).normal(0, 2, size).astype(np.float32).round(decimals)
    order = np.argsort(-logits, kind="stable")
    assert keep_top_k(logits, top_k)[0].tolist() == sorted(order[:top_k].tolist())


@given(LOGITS, st.floats(0.001, 1))
def test_top_p_keeps_the_fewest_that_reach_it(logits: np.ndarray, top_p: float) -> None:
    weights = np.exp(logits - logits.max())
    ids = np.flatnonzero(top_p_mask(weights, top_p))
    kept = weights[ids]
    share = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    assert share[ids].sum() >= top_p - 1e-6
    assert share[ids].sum() - share[ids].min() < top_p + 1e-6  # without the least likely it does not reach
    others = np.delete(share, ids)
    assert not others.size or others.max() <= share[ids].min()
    equal = np.flatnonzero(weights == kept.min())  # of equals, the lowest ids
    assert np.isin(equal, ids).tolist() == sorted(np.isin(equal, ids).tolist(), reverse=True)


def by_rank(logits: np.ndarray) -> np.ndarray:
    """Indices from the largest to the smallest, of equals the first first."""
    return np.argsort(-logits, kind="stable")


SHAPES = {
    "flat": lambda random, size: random.normal(0, 0.01, size),
    "peaked": lambda random, size: random.normal(0, 3, size),
    "one value": lambda random, size: np.zeros(size),
    "few values": lambda random, size: random.integers(-1, 2, size) / 4,
    "a head on a flat body": lambda random, size: np.where(
        np.arange(size) < 9, 10, random.normal(0, 0.1, size)
    ),
    "in order": lambda random, size: np.linspace(1, -1, size),
    "float16": lambda random, size: random.normal(0, 0.3, size).astype(np.float16),
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SHAPES)), st.integers(0, 99), st.floats(0.001, 0.9999), st.integers(9000, 40_000)
)
@example("flat", 0, 0.95, 151_936)
@example("one value", 0, 0.999, 151_936)
def test_top_p_of_many_logits_is_that_of_a_full_sort(shape: str, seed: int, top_p: float, size: int) -> None:
    """Enough of them that the threshold is looked for in a range rather than by sorting everything."""
    logits = SHAPES[shape](generator(seed), size).astype(np.float32)
    weights = np.exp(logits - logits.max())
    mask = top_p_mask(weights, top_p)
    order, share = by_rank(weights), weights.astype(np.float64) / weights.sum(dtype=np.float64)
    count = int(mask.sum())
    assert mask[order[:count]].all()  # the largest, and of equals the first
    reached = np.cumsum(share[order])
    assert reached[count - 1] >= top_p - 2e-6
    assert count == 1 or reached[count - 2] < top_p + 2e-6


def test_a_range_that_misses_the_threshold_is_noticed() -> None:
    """Every sixteenth weight, which is all that the sample sees, is unlike the others."""
    weights = np.ones(32_000, np.float32)
    weights[::16] = np.linspace(0.2, 0.9, 2000)
    mask, total = top_p_mask(weights, 0.5), weights.sum(dtype=np.float64)
    assert (weights[mask] == 1).all()
    assert mask.sum() == math.ceil(0.5 * total)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 99), st.integers(1, 20_000), st.integers(1, 20_000))
def test_top_k_of_all_shapes(shape: str, seed: int, size: int, top_k: int) -> None:
    logits = SHAPES[shape](generator(seed), size).astype(np.float32)
    mask = top_k_mask(logits, min(top_k, size))
    assert np.flatnonzero(mask).tolist() == sorted(by_rank(logits)[:top_k].tolist())


@given(
    hnp.arrays(np.float32, st.integers(1, 1500), elements=st.sampled_from([0, 0, 0.25, 0.5, 1])),
    st.floats(0, 1, exclude_max=True),
)
def test_draw_is_the_first_to_pass_its_share_of_the_sum(weights: np.ndarray, fraction: float) -> None:
    assume(weights.any())
    ends = np.cumsum(weights, dtype=np.float64)  # exact: all are multiples of a quarter
    chosen = draw(weights, fraction)
    assert weights[chosen] > 0
    assert chosen == int(np.searchsorted(ends, fraction * ends[-1], side="right"))


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1 - 2**-53])
def test_draw_never_takes_what_has_no_weight_however_sums_are_rounded(fraction: float) -> None:
    weights = generator(5).random(151_936).astype(np.float32)
    weights[1000:] = 0
    weights[::2] = 0
    for scale in (1, 1e-30, 1 / 3):
        assert weights[draw(weights * np.float32(scale), fraction)] > 0


@given(
    LOGITS, st.floats(0.001, 100), st.integers(0, 70), st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 9)
)
def test_draw_is_among_the_kept_and_repeatable(logits, temperature, top_k, top_p, min_p, seed) -> None:
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    before = logits.copy()
    tokens = [Sampler(options).choose(logits) for _ in range(2)]
    assert tokens[0] == tokens[1]
    assert np.array_equal(logits, before)
    assert tokens[0] in keep_top_k(logits, top_k)[0]
    assert math.exp((logits[tokens[0]] - logits.max()) / temperature) >= min_p * (1 - 1e-5)


def test_draws_follow_the_probabilities() -> None:
    logits = np.array([1.0, 3.0, 2.0, -1.0, 2.5], np.float32)
    cases = {
        SamplingOptions(temperature=1.0): softmax(logits),
        SamplingOptions(temperature=2.0): softmax(logits / 2),
        SamplingOptions(temperature=1.0, top_k=3): softmax(np.where(logits >= 2, logits, -np.inf)),
        # 0.46, 0.28, 0.17: two reach 0.7
        SamplingOptions(temperature=1.0, top_p=0.7): softmax(np.where(logits >= 2.5, logits, -np.inf)),
        SamplingOptions(temperature=1.0, min_p=0.5): softmax(np.where(logits >= 2.5, logits, -np.inf)),
    }
    random = generator(3)
    for options, expected in cases.items():
        drawn = np.bincount([sample(logits, options, random) for _ in range(20_000)], minlength=5) / 20_000
        assert np.abs(drawn - expected).max() < 0.015, options  # four standard deviations
        assert not drawn[expected == 0].any()


def test_one_seed_gives_one_sequence_of_draws() -> None:
    """Pinned: a change of the draw, or of its random numbers, is a change that users see."""
    logits = np.linspace(0, 3, 1000, dtype=np.float32)
    sampler = Sampler(SamplingOptions(temperature=1.0, top_k=50, top_p=0.9, seed=1234))
    assert [sampler.choose(logits) for _ in range(6)] == [999, 972, 996, 967, 970, 960]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_a_bad_logit_never_becomes_a_token(bad: float, temperature: float) -> None:
    logits = np.zeros(100, np.float32)
    logits[50] = bad
    with pytest.raises(GenerationError, match=r"(nan|inf) as the logit of token 50"):
        Sampler(SamplingOptions(temperature=temperature)).choose(logits)


def test_masked_logits_are_never_drawn() -> None:
    logits = np.full(100, -np.inf, np.float32)
    logits[[3, 60]] = 1.0
    for options in (SamplingOptions(), SamplingOptions(temperature=1.0, top_p=0.99, top_k=10)):
        sampler = Sampler(options)
        assert {sampler.choose(logits) for _ in range(50)} <= {3, 60}
    with pytest.raises(GenerationError, match="-inf"):
        Sampler(SamplingOptions()).choose(np.full(5, -np.inf, np.float32))


@given(LOGITS, st.floats(0.01, 100), st.data())
def test_penalty_divides_positive_and_multiplies_negative_logits(logits, penalty, data) -> None:
    used = data.draw(st.lists(st.integers(0, len(logits) - 1), unique=True))
    result = logits.copy()
    penalize_repetition(result, np.array(used, np.int64), penalty)
    for token, value in enumerate(logits):
        expected = value if token not in used else value / penalty if value > 0 else value * penalty
        assert result[token] == pytest.approx(expected, rel=1e-6)


def test_penalty_counts_the_prompt_and_the_answer() -> None:
    logits = np.array([5.0, 4.0, 3.9, 1.0], np.float32)
    sampler = Sampler(SamplingOptions(repetition_penalty=2.0), prompt=[0, 0])
    assert [sampler.choose(logits) for _ in range(3)] == [
        1,
        2,
        0,
    ]  # 2.5 4 3.9, then 2.5 2 3.9, then 2.5 2 1.95


@given(LOGITS, st.floats(-2, 2), st.floats(-2, 2), st.data())
def test_presence_and_frequency_are_openais(logits, presence, frequency, data) -> None:
    answer = data.draw(st.lists(st.integers(0, len(logits) - 1)))
    counts = TokenCounts()
    for token in answer:
        counts.add(token)
    result = logits.copy()
    penalize_presence(result, counts.ids, counts.counts, presence, frequency)
    for token, value in enumerate(logits):
        count = answer.count(token)
        assert result[token] == pytest.approx(value - count * frequency - (count > 0) * presence, abs=1e-4)


def test_presence_and_frequency_count_the_answer_but_not_the_prompt() -> None:
    logits = np.array([5.0, 4.7, 4.5, 1.0], np.float32)
    presence = Sampler(SamplingOptions(presence_penalty=0.4), prompt=[0, 0])
    assert [presence.choose(logits) for _ in range(5)] == [0, 1, 0, 0, 0]  # 4.6 4.3 4.5 from the third on
    frequency = Sampler(SamplingOptions(frequency_penalty=0.4), prompt=[0, 0])
    assert [frequency.choose(logits) for _ in range(5)] == [0, 1, 0, 2, 1]  # 4.2 4.3 4.1 at the last


def test_bias_is_added_and_bans_hold_against_it() -> None:
    logits = np.array([1.0, 2.0, 3.0, 0.0], np.float32)
    assert Sampler(SamplingOptions(logit_bias={0: 1.5, 1: 1.25})).choose(logits) == 1
    assert Sampler(SamplingOptions(banned_ids=[2, 1])).choose(logits) == 0
    hot = Sampler(SamplingOptions(temperature=50, logit_bias={3: 100}, banned_ids=[3, 0], seed=1))
    assert {hot.choose(logits) for _ in range(60)} == {1, 2}
    assert logits.tolist() == [1, 2, 3, 0]
    with pytest.raises(GenerationError, match="banned_ids holds 4 ids and leaves no token"):
        Sampler(SamplingOptions(banned_ids=range(4))).choose(logits)


def test_options_keep_their_own_bias() -> None:
    bias = {0: 50.0}
    sampler = Sampler(SamplingOptions(logit_bias=bias))
    bias[0] = -50.0
    assert sampler.choose(np.array([0, 1], np.float32)) == 0


def test_candidates_draw_differently_and_the_first_as_one_alone() -> None:
    logits, options = np.zeros(1000, np.float32), SamplingOptions(temperature=1.0, seed=3)
    alone, *candidates = (Sampler(options), *(Sampler(options, candidate=index) for index in range(3)))
    draws = [[sampler.choose(logits) for _ in range(8)] for sampler in (alone, *candidates)]
    assert draws[0] == draws[1]
    assert len({tuple(drawn) for drawn in draws}) == 3


@given(LOGITS, st.integers(0, 20), st.data())
def test_logprobs_are_those_of_the_softmax(logits, alternatives, data) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    expected = np.log(softmax(logits))
    record = token_logprobs(logits, token, alternatives)
    assert record.token_id == token
    assert record.logprob == pytest.approx(expected[token], abs=1e-5)
    named = [alternative.token_id for alternative in record.alternatives]
    assert named == (by_rank(logits)[:alternatives].tolist() if alternatives else [])
    assert [each.logprob for each in record.alternatives] == pytest.approx(expected[named], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-1, math.nan, math.inf, "0.7", True, None, 1e-9, 101, [1.0])),
        *(("top_k", value) for value in (-1, 1.5, True, None, "20")),
        *(("top_p", value) for value in (0, -0.1, 1.01, math.nan, None, True)),
        *(("min_p", value) for value in (-0.1, 1.01, math.nan, None)),
        *(("repetition_penalty", value) for value in (0, -1, math.nan, math.inf, None)),
        *(("presence_penalty", value) for value in (-101, 101, math.nan, None, "1", True)),
        *(("frequency_penalty", value) for value in (-101, 101, math.nan, None)),
        *(("logit_bias", value) for value in ([1], 5, None)),
        *(("banned_ids", value) for value in (5, "5", None, {1})),
        *(("seed", value) for value in (-1, 2**64, 1.0, True, "1")),
    ],
)
def test_bad_options_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(GenerationError) as caught:
        SamplingOptions(**{name: value})
    assert caught.value.message.startswith(f"{name} is {value!r}; valid: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": {"a": 1}}, "a token of logit_bias is 'a'; valid: a token id"),
        ({"logit_bias": {-1: 1}}, "a token of logit_bias is -1; valid"),
        ({"logit_bias": {7: 101}}, r"logit_bias\[7\] is 101; valid: from -100 to 100"),
        ({"logit_bias": {7: math.nan}}, r"logit_bias\[7\] is nan; valid"),
        ({"banned_ids": [1, -2]}, "a banned id is -2; valid"),
        ({"banned_ids": [True]}, "a banned id is True; valid"),
    ],
)
def test_bad_bias_and_bans_are_refused(options: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        SamplingOptions(**options)


def test_extreme_but_valid_options_work_on_a_whole_vocabulary() -> None:
    logits = generator().normal(0, 30, 151_936).astype(np.float32)
    for options in (
        SamplingOptions(temperature=0.001, seed=0),
        SamplingOptions(temperature=100, seed=0),
        SamplingOptions(temperature=100, top_p=1e-9, seed=0),
        SamplingOptions(temperature=100, top_k=10**12, top_p=0.999999, min_p=1.0, seed=2**64 - 1),
    ):
        assert 0 <= Sampler(options).choose(logits) < 151_936
