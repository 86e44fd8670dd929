"""Turns messages into the text the model reads, with the chat template that ships beside it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qtool.nano.unit import Message

TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")
_TOOLS_BEFORE = "# Tools\n<tools>"
_TOOLS_AFTER = (
    '\n</tools>\nCall a tool like this:\n<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>'
)


def _to_json(value: object) -> str:
    """JSON as chat templates expect it: key order kept, no HTML escapes, non-ASCII as it is."""
    return json.dumps(value, ensure_ascii=False)


@functools.cache
def _template() -> jinja2.Template:
    """The compiled template, in the environment that Hugging Face chat templates are written for."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _to_json
    return environment.from_string(TEMPLATE_PATH.read_text(encoding="utf-8"))


def render(
    messages: Sequence[Message],
    *,
    thinking: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = True,
) -> str:
    """Render a conversation.

    Args:
        messages: Chat messages, each with ``role`` and ``content``.
        thinking: False closes an empty think block, so that the model answers at once.
        tools: Tool definitions to list in the system turn.
        add_generation_prompt: Whether to open the assistant's turn at the end.

    Returns:
        The prompt as text, special tokens included.
    """
    return _template().render(
        messages=list(messages),
        tools=list(tools) or None,
        enable_thinking=thinking,
        add_generation_prompt=add_generation_prompt,
    )


def fold_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Write a tools list into the system message, for callers that can pass only messages.

    The result renders to exactly the text that ``render(messages, tools=tools)`` gives.
    """
    if not tools:
        return list(messages)
    has_system = bool(messages) and messages[0]["role"] == "system"
    system = str(messages[0]["content"]) if has_system else ""
    listed = "".join("\n" + _to_json(tool) for tool in tools)
    text = (system + "\n\n" if system else "") + _TOOLS_BEFORE + listed + _TOOLS_AFTER
    return [{"role": "system", "content": text}, *messages[has_system:]]
