"""The building block of the corpus: one self-contained exchange, and the rule that holds some of them out."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Message = Mapping[str, Any]
"""A chat message: ``role``, ``content`` and, for an assistant that called tools, ``tool_calls``."""

HELD_OUT_PERCENT = 10

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Unit:
    """One exchange that ends with a question, and the one right answer to it.

    Attributes:
        category: What the exchange exercises, for example ``"arithmetic"``.
        messages: The turns up to the question; the last one has the role user or tool.
        answer: The exact text the assistant must write, without any reasoning.
        reasoning: The short steps it writes first when thinking is on.
        keys: What identifies the exchange and its earlier turns to the split; the last key is its own.
        system: A system message this exchange depends on, or empty.
        tools: Tool definitions this exchange must be shown with, or empty.
    """

    category: str
    messages: tuple[Message, ...]
    answer: str
    reasoning: str
    keys: tuple[str, ...]
    system: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()


Maker = Callable[[random.Random], Unit]


def question(
    category: str, text: str, answer: str, reasoning: str, *, key: str | None = None, system: str = ""
) -> Unit:
    """A unit of one user turn. Its key is its text unless the caller knows a stricter one."""
    own_key = normalize(text) if key is None else key
    return Unit(category, ({"role": "user", "content": text},), answer, reasoning, (own_key,), system)


def normalize(text: str) -> str:
    """The text as the split sees it: case and closing punctuation do not make a new prompt."""
    return " ".join(text.lower().replace(",", " ").rstrip(" .?!").split())


def is_held_out(key: str) -> bool:
    """Whether this key belongs to the held-out tenth. Depends on nothing but the key."""
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def is_trainable(unit: Unit) -> bool:
    """Whether neither the exchange nor any turn inside it is held out."""
    return not any(is_held_out(key) for key in unit.keys)


def is_held_out_unit(unit: Unit) -> bool:
    """Whether exactly the last question is held out; earlier turns are ordinary ones."""
    return is_held_out(unit.keys[-1]) and not any(is_held_out(key) for key in unit.keys[:-1])


def tool_call(name: str, arguments: Mapping[str, Any]) -> str:
    """The text of one tool call, as Qwen3 writes it."""
    body = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def call_message(name: str, arguments: Mapping[str, Any]) -> Message:
    """An assistant message that made one tool call, in the structured form that chat APIs use."""
    function = {"name": name, "arguments": dict(arguments)}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def pick(random_source: random.Random, items: Sequence[_Item]) -> _Item:
    """One item, each equally likely."""
    return items[random_source.randrange(len(items))]


def vary(random_source: random.Random, text: str) -> str:
    """Write a question the way people type: sometimes no closing mark, sometimes all lower case."""
    if random_source.random() < 0.2:
        text = text.rstrip(".?!")
    if random_source.random() < 0.12:
        text = text.lower()
    return text
