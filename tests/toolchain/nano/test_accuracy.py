"""Grading: exact text, tool calls by value, reasoning ignored."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qtool.nano.accuracy import grade, is_right, measure, tool_calls, visible
from qtool.nano.corpus import Example, held_out
from qtool.nano.unit import Message


def example(answer: str, *, thinking: bool = False) -> Example:
    return Example("facts", ({"role": "user", "content": "?"},), (), thinking, "", answer, "?")


def test_visible_drops_reasoning_and_end_tokens() -> None:
    assert visible("<think>\n1 + 1\n</think>\n\n2.<|im_end|>\n") == "2."
    assert visible("2.") == "2."


def test_an_unfinished_thought_is_no_answer() -> None:
    assert visible("<think>\n1 + 1 = 2.") == ""


def test_tool_calls_are_compared_as_json() -> None:
    expected = example('<tool_call>\n{"name": "a", "arguments": {"x": 1, "y": 2}}\n</tool_call>')
    assert is_right('<tool_call>{"arguments":{"y":2,"x":1},"name":"a"}</tool_call>', expected)
    assert not is_right('<tool_call>{"arguments":{"y":2,"x":3},"name":"a"}</tool_call>', expected)
    assert not is_right("Done.", expected)


@pytest.mark.parametrize(
    "text", ["", "hello", "<tool_call>{", "<tool_call>{</tool_call>", "<tool_call>{}</tool_call> x"]
)
def test_what_is_not_only_tool_calls(text: str) -> None:
    assert tool_calls(text) is None


def test_scores_by_group() -> None:
    examples = [example("a"), example("b"), example("c", thinking=True)]
    grades = grade(["a", "x", "<think>\n\n</think>\n\nc"], examples)
    assert (grades.overall.right, grades.overall.total) == (2, 3)
    assert grades.by_thinking[True].share == 1.0
    assert grades.by_category["facts"].right == 2
    assert [wrong for _, wrong in grades.mistakes] == ["x"]
    assert "facts" in grades.table()


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="1 answers for 2 examples"):
        grade(["a"], [example("a"), example("b")])


def test_measure_passes_messages_and_thinking() -> None:
    examples = held_out(40)
    answers = iter(examples)
    seen: list[bool] = []

    def engine(messages: Sequence[Message], thinking: bool) -> str:
        seen.append(thinking)
        assert messages[-1]["role"] in {"user", "tool"}
        return next(answers).completion

    assert measure(engine, examples).share == 1.0
    assert seen == [item.thinking for item in examples]
