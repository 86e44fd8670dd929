"""The corpus: the same text every time, and held-out prompts that no seed can train on."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict

import pytest

from qtool.nano import knowledge
from qtool.nano.accuracy import grade, tool_calls
from qtool.nano.corpus import CATEGORIES, Example, held_out, train_examples
from qtool.nano.unit import is_held_out, normalize

# The digests change whenever the text changes, and then the shipped weights must be trained again.
TRAIN_DIGEST = "4e889b3a533c0778"
HELD_OUT_DIGEST = "45c8bd782afcea3e"


def digest(examples: list[Example]) -> str:
    return hashlib.sha256(repr(examples).encode("utf-8")).hexdigest()[:16]


@pytest.fixture(scope="module")
def trained() -> list[Example]:
    return list(train_examples(1, 20_000))


def test_same_seed_same_text() -> None:
    assert digest(list(train_examples(1, 2_000))) == TRAIN_DIGEST
    assert digest(held_out(400)) == HELD_OUT_DIGEST


def test_other_seed_other_text() -> None:
    assert digest(list(train_examples(2, 2_000))) != TRAIN_DIGEST


def test_held_out_covers_every_category_in_both_modes() -> None:
    counts = Counter((example.category, example.thinking) for example in held_out(400))
    assert set(counts) == {(category, thinking) for category in CATEGORIES for thinking in (False, True)}
    assert min(counts.values()) >= 10


def test_longer_held_out_list_starts_with_the_shorter() -> None:
    assert held_out(100) == held_out(200)[:100]


def test_no_held_out_question_is_trained(trained: list[Example]) -> None:
    questions = {example.key for example in held_out(1_000)}
    assert all(is_held_out(key) for key in questions)
    assert not questions & {example.key for example in trained}


def test_no_held_out_prompt_hides_in_an_earlier_turn(trained: list[Example]) -> None:
    single = {
        normalize(example.messages[-1]["content"])
        for example in held_out(1_000)
        if example.category in {"lights", "facts", "counting", "two calls", "copying", "languages"}
    }
    earlier = {
        normalize(message["content"])
        for example in trained
        for message in example.messages
        if message["role"] == "user"
    }
    assert len(single) > 200
    assert not single & earlier


def test_held_out_sums_are_not_trained_in_any_phrasing(trained: list[Example]) -> None:
    def equation(example: Example) -> str:
        return example.answer.split(".")[0]

    kinds = {"arithmetic", "word problems"}
    trained_equations = {equation(example) for example in trained if example.category in kinds}
    for example in held_out(1_000):
        numbers = example.answer.split(" = ")[0].replace("x", "+").replace("-", "+").split(" + ")
        if example.category in kinds and " x " not in example.answer and max(map(int, numbers)) > 9:
            assert equation(example) not in trained_equations


def test_every_fact_is_trained_although_some_phrasings_are_held_out() -> None:
    answers: defaultdict[str, set[str]] = defaultdict(set)
    for example in train_examples(1, 60_000):
        if example.category == "facts":
            answers[example.answer].add(example.key)
    assert min(len(phrasings) for phrasings in answers.values()) >= 2
    assert len([answer for answer in answers if answer.startswith("The capital of")]) == len(
        knowledge.CAPITALS
    )
    assert {example.answer for example in held_out(1_000) if example.category == "facts"} <= set(answers)


def test_one_prompt_has_one_answer(trained: list[Example]) -> None:
    answers: dict[str, str] = {}
    for example in trained:
        prompt = repr(example.messages)
        assert answers.setdefault(prompt, example.answer) == example.answer


def test_tool_calls_are_json(trained: list[Example]) -> None:
    called = [example for example in trained if example.answer.startswith("<tool_call>")]
    assert len(called) > 5_000
    for example in called:
        calls = tool_calls(example.answer)
        assert calls is not None
        assert all(set(call) == {"name", "arguments"} for call in calls)


def test_expected_answers_grade_as_right() -> None:
    examples = held_out(400)
    grades = grade([example.completion for example in examples], examples)
    assert grades.share == 1.0
    assert not grades.mistakes
