"""What counts as the same model on another processor."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qtool.emulate.comparison import MOST_DIVERGENCE, Comparison, compare
from qtool.emulate.verify import Emulation

TOKENS, VOCABULARY = 6, 50
Logits = npt.NDArray[np.float32]


@pytest.fixture
def logits() -> Logits:
    return np.random.default_rng(0).normal(0, 4, (2, TOKENS, VOCABULARY)).astype(np.float32)


def findings(logits: Logits, **changes: Any) -> dict[str, Any]:
    return {"prompt": [1, 2], "answer": logits[1].argmax(axis=1).tolist(), "text": "words"} | changes


def compared(here: Logits, there: Logits, **changes: Any) -> Comparison:
    return compare(findings(here), findings(there, **changes), here, there)


def test_the_same_is_the_same(logits: Logits) -> None:
    result = compared(logits, logits)
    assert (result.tokens, result.same_tokens, result.problem, result.text) == (TOKENS, TOKENS, "", "words")
    assert (result.kl_mean, result.kl_largest, result.logit_distance) == (0, 0, 0)


def test_rounding_is_no_problem_and_is_measured(logits: Logits) -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, logits.shape).astype(np.float32)
    result = compared(logits, logits + noise)
    assert result.problem == ""
    assert 0 < result.kl_mean < result.kl_largest < 1e-3
    assert result.logit_distance == pytest.approx(np.abs(noise).max() / np.abs(logits).max(), rel=1e-3)


@pytest.mark.parametrize("way", [0, 1], ids=["at once", "one by one"])
def test_a_wrong_kernel_is_found_in_both_ways_of_reading(logits: Logits, way: int) -> None:
    other = logits.copy()
    other[way] = np.roll(logits[way], 1, axis=-1)
    result = compared(logits, other, answer=findings(logits)["answer"])
    assert result.problem.startswith("its probabilities are others: KL divergence ")
    assert result.kl_mean == (result.kl_one_by_one if way else result.kl_at_once) > 100 * MOST_DIVERGENCE


def test_two_tokens_that_are_about_as_likely_may_change_places(logits: Logits) -> None:
    first, second = np.argsort(logits[1, 3])[-2:]
    logits[:, 3, first] = logits[:, 3, second] - 0.01
    other = logits.copy()
    other[:, 3, first] += 0.02
    result = compared(logits, other)
    assert (result.same_tokens, result.problem) == (3, "")


def test_another_token_than_the_clearly_likeliest_is_a_problem(logits: Logits) -> None:
    """With the same probabilities, so that only the choice can be wrong."""
    answer = findings(logits)["answer"]
    least = int(logits[1, 2].argmin())
    result = compared(logits, logits, answer=[*answer[:2], least, *answer[3:]])
    assert result.same_tokens == 2
    assert result.problem == "token 3 is another, though it was clearly the likeliest"


def test_other_tokens_of_the_prompt_are_a_problem(logits: Logits) -> None:
    assert compared(logits, logits, prompt=[1, 3]).problem == "the prompt becomes other tokens"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_a_problem(logits: Logits, value: float) -> None:
    other = logits.copy()
    other[0, 1, 2] = value
    assert compared(logits, other).problem == "it predicts probabilities that are not numbers"
    record = Emulation("max", "", "", compared(logits, other), "").to_dict()
    assert json.loads(json.dumps(record, allow_nan=False))["comparison"]["kl_largest"] is None
