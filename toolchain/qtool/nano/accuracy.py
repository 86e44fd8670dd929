"""Grades any engine that runs nano: which answers are exactly right, overall and by category.

Example::

    from qtool.nano.accuracy import measure
    from qtool.nano.corpus import held_out

    result = measure(lambda messages, thinking: engine.chat(messages, thinking), held_out())
    print(result.share, result.table())
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from qtool.nano.corpus import Example
from qtool.nano.template import fold_tools
from qtool.nano.unit import Message

Engine = Callable[[Sequence[Message], bool], str]
"""Takes messages and whether to think; returns what the model wrote, with or without its reasoning."""

_Group = TypeVar("_Group", str, bool)
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_STOPS = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Score:
    """How many of a group of answers were right."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """Right answers as a share between 0 and 1; an empty group counts as 0."""
        return self.right / self.total if self.total else 0.0


@dataclass(frozen=True)
class Grades:
    """The result of grading.

    Attributes:
        overall: All examples.
        by_category: One score per category, in the order of first appearance.
        by_thinking: One score for thinking off and one for on, where such examples exist.
        mistakes: The examples answered wrongly, with the wrong answer.
    """

    overall: Score
    by_category: dict[str, Score]
    by_thinking: dict[bool, Score]
    mistakes: tuple[tuple[Example, str], ...]

    @property
    def share(self) -> float:
        """The share of right answers overall."""
        return self.overall.share

    def table(self) -> str:
        """The scores as lines of text, one a category."""
        rows = [("all", self.overall)]
        rows += [
            (f"thinking {'on' if on else 'off'}", score) for on, score in sorted(self.by_thinking.items())
        ]
        rows += list(self.by_category.items())
        return "\n".join(
            f"{name:<14} {score.right:>4} / {score.total:<4} {score.share:7.1%}" for name, score in rows
        )


def visible(text: str) -> str:
    """The answer without reasoning, end-of-turn tokens and outer white space."""
    for stop in _STOPS:
        text = text.split(stop, 1)[0]
    if "<think>" in text and "</think>" not in text:
        return ""
    return text.split("</think>")[-1].strip()


def tool_calls(text: str) -> list[Any] | None:
    """The parsed tool calls of an answer that is nothing else, or None."""
    rest, calls = text.strip(), []
    while rest:
        if not rest.startswith(_OPEN) or _CLOSE not in rest:
            return None
        body, rest = rest[len(_OPEN) :].split(_CLOSE, 1)
        rest = rest.strip()
        try:
            calls.append(json.loads(body))
        except ValueError:
            return None
    return calls or None


def is_right(answer: str, example: Example) -> bool:
    """Whether an answer is exactly the expected one; tool calls are compared as JSON, in order."""
    given = visible(answer)
    expected = tool_calls(example.answer)
    if expected is not None:
        return tool_calls(given) == expected
    return given == example.answer


def grade(answers: Sequence[str], examples: Sequence[Example]) -> Grades:
    """Compare answers with examples.

    Args:
        answers: What the model wrote, one text an example, in the same order.
        examples: The questions and their right answers.

    Returns:
        The scores.

    Raises:
        ValueError: The two have different lengths.
    """
    if len(answers) != len(examples):
        raise ValueError(f"{len(answers)} answers for {len(examples)} examples")
    rights = [is_right(answer, example) for answer, example in zip(answers, examples, strict=True)]
    return Grades(
        overall=Score(sum(rights), len(rights)),
        by_category=_scores([example.category for example in examples], rights),
        by_thinking=_scores([example.thinking for example in examples], rights),
        mistakes=tuple(
            (example, answer)
            for right, answer, example in zip(rights, answers, examples, strict=True)
            if not right
        ),
    )


def _scores(groups: Sequence[_Group], rights: Sequence[bool]) -> dict[_Group, Score]:
    """One score per group, in the order of first appearance."""
    members: dict[_Group, list[bool]] = {}
    for group, right in zip(groups, rights, strict=True):
        members.setdefault(group, []).append(right)
    return {group: Score(sum(answers), len(answers)) for group, answers in members.items()}


def measure(engine: Engine, examples: Sequence[Example]) -> Grades:
    """Ask an engine every question and grade what it writes.

    Tool lists are folded into the system message, which renders to the same prompt as passing them to the
    template: an engine needs to take only messages and the thinking switch.
    """
    answers = [engine(fold_tools(example.messages, example.tools), example.thinking) for example in examples]
    return grade(answers, examples)
