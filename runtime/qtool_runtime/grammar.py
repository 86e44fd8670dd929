"""What an answer has to look like: a JSON schema, a regular expression, a Lark grammar or calls of tools.

Each becomes a grammar in llguidance's own form, a JSON document that lists named grammars; the first is the
whole answer, and the others are what it refers to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qtool_runtime.answer import CALL, END_CALL
from qtool_runtime.constraint import import_llguidance
from qtool_runtime.errors import GenerationError

WHITESPACE = r" |\n {0,16}"
"""Between two parts of JSON: none, one space, or a new line and its indentation. llguidance would allow any
amount, and a small model that has lost its way can then write white space for ever."""

CALL_WHITESPACE = " "
"""As templates write earlier calls."""

Rules = dict[str, Any]
"""One grammar of llguidance's, without a name."""


def answer_grammar(
    json_schema: Any = None,
    regex: str | None = None,
    grammar: str | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: str = "auto",
) -> str | None:
    """Returns the grammar of an answer, or None if it can be anything.

    Args:
        json_schema: a mapping, its JSON text, or True for any JSON value.
        regex: a regular expression in the syntax of Rust's `regex`; it has to match the whole answer.
        grammar: Lark text, in llguidance's dialect.
        tools: functions that can be called, as `check_tools` passed them.
        tool_choice: "auto" (calls are allowed beside what the first three say), "required" (calls only), or
            the name of a tool (one call of that).

    Raises:
        MissingExtraError: llguidance is not installed.
        GenerationError: what is asked for is malformed or contradictory; with llguidance's message.
    """
    asked = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
    given = [name for name, value in asked.items() if value is not None]
    if tool_choice != "auto":
        given.append("tool_choice")
    if len(given) > 1:
        raise GenerationError(f"both {given[0]} and {given[1]} are given; valid: at most one of them")
    if not given:
        return None
    answer: Rules | None = None
    if json_schema is not None:
        answer = _check("json_schema", _json_rules("json_schema", json_schema))
    elif regex is not None:
        answer = _check("regex", _regex_rules(regex))
    elif grammar is not None:
        answer = _check("grammar", {"lark_grammar": _text("grammar", grammar)})
    if not tools:
        return json.dumps({"grammars": [answer]})
    return json.dumps({"grammars": _call_rules(tools, tool_choice, answer)})


def _json_rules(option: str, schema: Any, whitespace: str = WHITESPACE) -> Rules:
    """Returns rules for JSON that matches a schema.

    Raises:
        GenerationError: it is not a schema.
    """
    try:
        schema = json.loads(schema if isinstance(schema, str) else json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise GenerationError(f"{option} is not JSON: {error}") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GenerationError(
            f"{option} is {schema!r:.80}; valid: a mapping, its JSON text, or True for any JSON"
        )
    # llguidance's own options can be given in the schema, under this key.
    settings = schema.get("x-guidance", {})
    if isinstance(settings, dict):
        settings = {"whitespace_pattern": whitespace} | settings
    return {"json_schema": schema | {"x-guidance": settings}}


def _regex_rules(regex: Any) -> Rules:
    grammar = import_llguidance().LLMatcher.grammar_from_regex(_text("regex", regex))
    rules: Rules = json.loads(grammar)["grammars"][0]
    return {"lark_grammar": rules["lark_grammar"]}


def _call_rules(
    tools: Sequence[Mapping[str, Any]], tool_choice: str, answer: Rules | None
) -> list[dict[str, Any]]:
    """Returns rules for calls of tools, in the form that Qwen's models were trained on.

    The name of a tool and everything before its arguments is fixed text, so that the model only has to choose
    among tools and to fill in arguments.
    """
    lark, named = ["start: calls"], []
    if answer is not None:
        lark, named = ["start: calls | @answer"], [{"name": "answer", **answer}]
    any_tool = tool_choice in ("auto", "required")
    lark.append(r'calls: call ("\n" call)*' if any_tool else "calls: call")
    alternatives = []
    for index, tool in enumerate(tools):
        function = tool.get("function", tool)
        name = function["name"]
        if any_tool or name == tool_choice:
            title = f"parameters of {name!r}"
            schema = _arguments_schema(name, function)
            rules = _check(title, _json_rules(title, schema, CALL_WHITESPACE))
            named.append({"name": f"arguments_{index}", **rules})
            opening = f'{CALL}\n{{"name": {_quoted(name)}, "arguments": '
            closing = f"}}\n{END_CALL}"
            lark.append(f"call_{index}: {_quoted(opening)} @arguments_{index} {_quoted(closing)}")
            alternatives.append(f"call_{index}")
    lark.append(f"call: {' | '.join(alternatives)}")
    return [{"name": "calls", "lark_grammar": "\n".join(lark)}, *named]


def _arguments_schema(name: str, function: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema of a function's arguments: an object, with no others than those it names.

    JSON schema allows any others unless told not to, which is not what descriptions of functions mean. Where
    a description says more than names, it is left as it is.
    """
    schema = function.get("parameters")
    schema = {} if schema is None else schema
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise GenerationError(
            f"the parameters of {name!r} are {schema!r:.80}; valid: the schema of an object",
            hint='For example {"type": "object", "properties": {"city": {"type": "string"}}}.',
        )
    plain = {"type", "properties", "required", "title", "description", "$schema", "$defs", "definitions"}
    closed = {"additionalProperties": False} if schema.keys() <= plain else {}
    return {**schema, "type": "object", **closed}


def _check(title: str, rules: Rules) -> Rules:
    """Returns the rules.

    Raises:
        GenerationError: llguidance does not accept them; `title` says whose they are.
    """
    message = import_llguidance().LLMatcher.validate_grammar(json.dumps({"grammars": [rules]}))
    if message:
        raise GenerationError(f"{title} cannot be used: {message.strip()}")
    return rules


def _text(option: str, value: Any) -> str:
    if not isinstance(value, str):
        raise GenerationError(f"{option} is {value!r:.80}; valid: a text")
    return value


def _quoted(text: str) -> str:
    """A string of JSON, and of Lark."""
    return json.dumps(text, ensure_ascii=False)
