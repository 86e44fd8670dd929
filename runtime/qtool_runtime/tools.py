"""Tools that a model may call: checks of their descriptions, and calls as records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtool_runtime.errors import GenerationError


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for. Whether there is such a tool is for the application to say.

    Attributes:
        name: the function.
        arguments: its arguments, as JSON values; empty if the model gave none.
        raw: the text between the tags.
    """

    name: str
    arguments: dict[str, Any]
    raw: str


@dataclass(frozen=True)
class MalformedToolCall:
    """Something that was meant as a call and cannot be made.

    Attributes:
        raw: the text after `<tool_call>`, up to the end of the call.
        reason: what is wrong with it.
    """

    raw: str
    reason: str


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> None:
    """Refuses descriptions that no template or model can make sense of.

    Args:
        tools: {"type": "function", "function": {"name": …, …}} each, or the inner mapping alone.

    Raises:
        GenerationError: one has no function name, or two have the same.
    """
    if tools is None:
        return
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise GenerationError(f"tools is {tools!r:.80}; valid: None, or a list of function descriptions")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise GenerationError(
                f"tool {index} is {tool!r:.80}; valid: a mapping with a function name",
                hint='For example {"type": "function", "function": {"name": "weather", "parameters": {…}}}.',
            )
        if name in names:
            raise GenerationError(f"tool {index} is called {name!r}, as another one; valid: distinct names")
        names.add(name)


def check_tool_choice(tool_choice: str | None, tools: Sequence[Mapping[str, Any]] | None) -> str:
    """Returns the choice: "auto" if none was made.

    Args:
        tool_choice: None, "auto", "required", or the name of a tool.
        tools: what `check_tools` passed.

    Raises:
        GenerationError: it is none of these, or there is no tool to choose.
    """
    if tool_choice is None or tool_choice == "auto":
        return "auto"
    names = [tool.get("function", tool)["name"] for tool in tools or ()]
    if not names:
        raise GenerationError(f"tool_choice is {tool_choice!r}, but there are no tools", hint="Give tools.")
    if tool_choice != "required" and tool_choice not in names:
        valid = ", ".join(map(repr, ["auto", "required", *names]))
        raise GenerationError(f"tool_choice is {tool_choice!r}; valid: {valid}")
    return tool_choice


def parse_tool_call(raw: str) -> ToolCall | MalformedToolCall:
    """Reads the JSON of a call: an object with "name" and, unless there are none, "arguments".

    Arguments that are a string of JSON, as in OpenAI's interface, are read too.
    """
    try:
        call = _parse(raw)
        if not isinstance(call, dict):
            raise ValueError("it is not an object")
        name, arguments = call.get("name"), call.get("arguments", {})
        if not isinstance(name, str) or not name:
            raise ValueError('it has no "name"' if name is None else f'its "name" is {name!r:.40}')
        if isinstance(arguments, str):
            arguments = _parse(arguments)
        if not isinstance(arguments, dict):
            raise ValueError('its "arguments" are not an object')
    except json.JSONDecodeError as error:
        return MalformedToolCall(raw, f"it is not JSON: {error}")
    except (ValueError, RecursionError) as error:
        return MalformedToolCall(raw, str(error))
    return ToolCall(name, arguments, raw)


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it is not JSON: {name} is no number")
