"""The text that nano learns from, made up here: a small closed world where each question has one answer.

Nothing is copied from anywhere; every conversation is put together from the tables and phrasings in this
folder by a seeded random generator, so two runs with the same seed give the same text on every machine.

A tenth of all prompts is held out. Which ones is decided by a hash of the prompt itself (for sums and
differences: of its two numbers, so that a held-out sum is not trained in any phrasing), never by the seed:
no seed can train on a held-out prompt. See `qtool.nano.unit` for that rule.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from qtool.nano import copying, devices, knowledge, numbers
from qtool.nano.unit import Maker, Message, Unit, is_held_out_unit, is_trainable

MAKERS: dict[str, tuple[Maker, float, float]] = {
    "lights": (partial(devices.command_unit, category="lights"), 0.07, 0.03),
    "thermostat": (partial(devices.command_unit, category="thermostat"), 0.05, 0.03),
    "timer": (partial(devices.command_unit, category="timer"), 0.05, 0.03),
    "blinds": (partial(devices.command_unit, category="blinds"), 0.04, 0.02),
    "music": (partial(devices.command_unit, category="music"), 0.05, 0.03),
    "locks": (partial(devices.command_unit, category="locks"), 0.03, 0.02),
    "two calls": (devices.two_calls, 0.06, 0.05),
    "tool result": (devices.tool_result, 0.05, 0.03),
    "follow-up": (devices.follow_up, 0.06, 0.04),
    "arithmetic": (numbers.arithmetic, 0.20, 0.14),
    "word problems": (numbers.word_problem, 0.04, 0.10),
    "compare": (numbers.compare, 0.03, 0.06),
    "counting": (numbers.counting, 0.04, 0.16),
    "facts": (knowledge.fact, 0.09, 0.05),
    "lists": (knowledge.listing, 0.01, 0.05),
    "small talk": (knowledge.small_talk, 0.03, 0.02),
    "names": (knowledge.remember_name, 0.02, 0.01),
    "languages": (knowledge.other_language, 0.03, 0.02),
    "copying": (copying.copying, 0.06, 0.11),
}
"""For each category: what makes a unit of it, and its shares of the examples and of those for practice."""

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are nano, a small assistant.",
    "You help at home.",
    "Answer briefly.",
    "You are a friendly home assistant. Answer briefly.",
    "Be polite and precise.",
)
HELD_OUT_SEED = 20250101
_TRIES = 10_000
_FRESH_TRIES = 100


@dataclass(frozen=True)
class Example:
    """One conversation that ends with a question.

    Attributes:
        category: One of `CATEGORIES`.
        messages: The conversation up to the question, as chat messages.
        tools: Tool definitions for the template's ``tools``; mostly empty.
        thinking: Whether the assistant reasons first (the template's ``enable_thinking``).
        reasoning: The reasoning it is trained to write when ``thinking`` is on.
        answer: The exact answer, without the reasoning.
        key: What the split knows the question by.
    """

    category: str
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    thinking: bool
    reasoning: str
    answer: str
    key: str

    @property
    def completion(self) -> str:
        """What the model writes after the rendered prompt, up to the end-of-turn token."""
        if not self.thinking:
            return self.answer
        return f"<think>\n{self.reasoning}\n</think>\n\n{self.answer}"


CATEGORIES = tuple(MAKERS)


def _trainable_unit(source: random.Random, category: str) -> Unit:
    """A unit of the category that is not held out."""
    maker = MAKERS[category][0]
    for _ in range(_TRIES):
        unit = maker(source)
        if is_trainable(unit):
            return unit
    raise RuntimeError(f"no trainable unit of category {category!r} in {_TRIES} tries")


def _held_out_unit(source: random.Random, category: str) -> Unit:
    """A unit of the category whose question is held out."""
    maker = MAKERS[category][0]
    for _ in range(_TRIES):
        unit = maker(source)
        if is_held_out_unit(unit):
            return unit
    raise RuntimeError(f"no held-out unit of category {category!r} in {_TRIES} tries")


def _draw_category(source: random.Random, practice: bool) -> str:
    """A category, by its share."""
    shares = [late if practice else share for _, share, late in MAKERS.values()]
    return source.choices(CATEGORIES, weights=shares)[0]


def _history(source: random.Random, practice: bool) -> list[Message]:
    """Earlier turns that have nothing to do with the question: most often none."""
    turns: list[Message] = []
    if source.random() < 0.85:
        return turns
    for _ in range(source.randrange(1, 4)):
        unit = _trainable_unit(source, _draw_category(source, practice))
        if unit.system or unit.category == "names":
            continue  # A name must not contradict the one that a later question asks for.
        turns += unit.messages
        turns.append({"role": "assistant", "content": unit.answer})
    return turns


def _conversation(source: random.Random, unit: Unit, *, thinking: bool, practice: bool = False) -> Example:
    """Put a unit into a conversation: sometimes a system message, sometimes earlier turns."""
    system = unit.system
    if not system and source.random() < 0.25:
        system = source.choice(SYSTEM_MESSAGES)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    if not unit.system:
        messages += _history(source, practice)
    messages += unit.messages
    return Example(
        unit.category, tuple(messages), unit.tools, thinking, unit.reasoning, unit.answer, unit.keys[-1]
    )


def train_examples(seed: int, count: int, *, practice: bool = False) -> Iterator[Example]:
    """Yield ``count`` training examples; the same seed always gives the same ones.

    Args:
        seed: Chooses the examples.
        count: How many.
        practice: More of what a small model learns last: counting, word problems, comparing, lists, copying.
    """
    source = random.Random(f"nano train {seed}")
    for _ in range(count):
        unit = _trainable_unit(source, _draw_category(source, practice))
        yield _conversation(source, unit, thinking=source.random() < 0.35, practice=practice)


def held_out(count: int = 400) -> list[Example]:
    """The fixed evaluation set: every category in turn, thinking off and on, no question twice.

    Args:
        count: How many examples; a longer set starts with the shorter one. Categories with few phrasings,
            such as lists, run out first and are then passed over.

    Returns:
        The examples. None of their questions is ever trained on.
    """
    source = random.Random(HELD_OUT_SEED)
    examples: list[Example] = []
    seen: set[str] = set()
    place = 0
    while len(examples) < count:
        category = CATEGORIES[place % len(CATEGORIES)]
        unit = _unseen_unit(source, category, seen)
        if unit is not None:
            thinking = (place // len(CATEGORIES)) % 2 == 1
            examples.append(_conversation(source, unit, thinking=thinking))
        place += 1
    return examples


def _unseen_unit(source: random.Random, category: str, seen: set[str]) -> Unit | None:
    """A held-out unit that is not in ``seen`` yet (and then is), or None for a category that is used up."""
    for _ in range(_FRESH_TRIES):
        unit = _held_out_unit(source, category)
        text = str(unit.system) + str(unit.messages)
        if text not in seen:
            seen.add(text)
            return unit
    return None
