"""Drafts change how much is read in one pass, never what is answered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool_runtime import Model, load
from qtool_runtime.session import OnnxSession
from qtool_runtime.speculation import MAXIMUM_DRAFT, Acceptance, PromptLookup

from .decoder_graphs import TinyDecoder, write_artifact

REPEATING = [5, 6, 7, 8, 9, 10, 11] * 6
TOKENS = st.lists(st.integers(0, 3), max_size=60)


@pytest.fixture(scope="module", params=["in_place", "concatenate"])
def model(request: pytest.FixtureRequest, tmp_path_factory, tokenizer_json: bytes):
    """A float32 model of each kind of cache: its logits do not depend on the number of rows, but for 1e-6."""
    folder = tmp_path_factory.mktemp(request.param)
    write_artifact(folder, TinyDecoder(update=request.param, context=400), {"tokenizer.json": tokenizer_json})
    with load(folder, threads=1, prefix_memory=0) as loaded:
        yield loaded


def answer(model: Model, prompt=REPEATING, **options):
    stream = model.generate(prompt, ignore_eos=True, **options)
    stream.read()
    return stream


# What drafts are proposed


@given(TOKENS, st.integers(1, 10))
def test_a_draft_is_what_followed_the_same_tokens_before(tokens: list[int], limit: int) -> None:
    draft, match = PromptLookup(tokens).propose(limit)
    pairs = [tuple(tokens[index : index + 2]) for index in range(len(tokens) - 2)]
    assert bool(draft) == (len(tokens) > 1 and tuple(tokens[-2:]) in pairs)
    if draft:
        assert len(draft) <= limit
        behind = tokens[-match:] + draft
        assert any(tokens[index : index + len(behind)] == behind for index in range(len(tokens)))


@given(TOKENS)
def test_tokens_may_come_one_by_one(tokens: list[int]) -> None:
    lookup = PromptLookup([])
    for token in tokens:
        lookup.add(token)
    assert lookup.propose(4) == PromptLookup(tokens).propose(4)


def test_the_longest_match_wins() -> None:
    tokens = [1, 2, 3, 50, 9, 2, 3, 60, 1, 2, 3]
    assert PromptLookup(tokens).propose(1) == ([50], 3)


def test_drafting_stops_where_drafts_are_wrong_and_starts_again() -> None:
    acceptance = Acceptance()
    for _ in range(10):
        acceptance.judge(4, 0, wrong=True)
    assert acceptance.worthwhile(4) == 0
    assert acceptance.worthwhile(6) > 0  # of another length of match
    for _ in range(30):
        acceptance.judge(4, 1, wrong=False)
    assert acceptance.worthwhile(4) == MAXIMUM_DRAFT


# What comes of them


@pytest.mark.parametrize("prompt", [REPEATING, [3, 1, 4, 1, 5, 9, 2, 6], [7], [5, 6] * 40])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 40, None])
def test_greedy_answers_are_the_same(model: Model, prompt, max_tokens: int | None) -> None:
    # Used tokens are penalized mildly, so that the answer neither repeats itself for ever nor never.
    options = {"max_tokens": max_tokens, "repetition_penalty": 1.2}
    plain = answer(model, prompt, **options)
    drafted = answer(model, prompt, speculate=True, **options)
    assert drafted.token_ids == plain.token_ids
    assert drafted.stop_reason == plain.stop_reason
    assert plain.stats.drafted_tokens == 0


def test_right_drafts_save_passes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    forward = OnnxSession.forward

    def counted(self, token_ids, rows: int = 1):
        lengths.append(len(token_ids))
        return forward(self, token_ids, rows)

    monkeypatch.setattr(OnnxSession, "forward", counted)
    stream = answer(model, max_tokens=60, speculate=True, logit_bias={8: 90})  # the answer is 8, 8, 8, …
    result = stream.stats
    assert stream.token_ids == (8,) * 60
    assert len(lengths) < 20
    assert result.accepted_tokens > 40
    # Every token but the last is read, once: accepted with another, or alone.
    assert len(lengths) - 1 + result.accepted_tokens == 59
    assert sum(lengths) == len(REPEATING) + len(lengths) - 1 + result.drafted_tokens


@pytest.mark.parametrize("seed", range(20))
def test_sampled_answers_are_the_same_for_a_seed(model: Model, seed: int) -> None:
    options = {"temperature": 0.7, "top_k": 5, "seed": seed, "max_tokens": 60, "logprobs": 1}
    plain, drafted = answer(model, **options), answer(model, speculate=True, **options)
    assert drafted.token_ids == plain.token_ids
    np.testing.assert_allclose(
        [record.logprob for record in drafted.logprobs],
        [record.logprob for record in plain.logprobs],
        atol=1e-4,
    )


def test_the_distribution_of_sampled_answers_is_the_same(model: Model) -> None:
    """Chi-square over the third to sixth token, of other seeds with drafts than without."""
    draws = {}
    for speculate in (False, True):
        counts = np.zeros(12)
        for seed in range(250):
            options = {"temperature": 1.0, "top_k": 3, "max_tokens": 6, "seed": seed + 1000 * speculate}
            tokens = answer(model, REPEATING, speculate=speculate, **options).token_ids
            counts[np.array(tokens[2:]) % 12] += 1
        draws[speculate] = counts
    plain, drafted = (draws[key][draws[False] + draws[True] > 0] for key in (False, True))
    assert len(plain) > 3
    statistic = ((plain - drafted) ** 2 / (plain + drafted)).sum()
    # Mean and standard deviation of the chi-square distribution; four of them are passed once in 10,000.
    degrees = len(plain) - 1
    assert statistic < degrees + 4 * np.sqrt(2 * degrees) + 4


def test_stopping_early_leaves_no_draft_behind(model: Model) -> None:
    stream = model.generate(REPEATING, ignore_eos=True, speculate=True, logit_bias={8: 90}, max_tokens=23)
    session = stream._session
    for _ in range(20):
        stream.step()
    stream._steps.close()
    assert session.length <= len(REPEATING) + 20
