"""Structured answers of a real model: what comes out is valid, however it is sampled."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtool_runtime.answer import AnswerText
from qtool_runtime.errors import GenerationError
from qtool_runtime.model import Model
from qtool_runtime.stream import TextStream

pytest.importorskip("llguidance", reason="needs llguidance (the extra `structured`)")
jsonschema = pytest.importorskip("jsonschema")

LIGHT = [{"role": "user", "content": "Turn on the kitchen light and set a timer for 5 minutes"}]


def closed(**properties: Any) -> dict[str, Any]:
    """An object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


WORD = {"type": "string", "maxLength": 12}
SMALL = {"type": "integer", "minimum": -5, "maximum": 120}
SCHEMAS: dict[str, Any] = {
    "integer": SMALL,
    "number": {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.01},
    "string": WORD,
    "enum": {"enum": ["on", "off", 3, None, {"a": [1]}]},
    "const": {"const": {"ä": "é</tool_call> <|im_end|> cafe\u0301"}},
    "boolean or null": {"type": ["boolean", "null"]},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "date": {"type": "string", "format": "date"},
    "array": {"type": "array", "items": SMALL, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [WORD, SMALL], "items": False, "minItems": 2},
    "object": closed(name=WORD, count=SMALL),
    "optional": {"type": "object", "properties": {"a": WORD, "b": SMALL}, "additionalProperties": False},
    "nested": closed(
        room=WORD,
        lamp=closed(on={"type": "boolean"}, levels={"type": "array", "items": SMALL, "maxItems": 3}),
    ),
    "any of": {"anyOf": [closed(a=SMALL), closed(b=WORD), {"type": "null"}]},
    "reference": {
        "$defs": {"node": closed(value=SMALL, next={"anyOf": [{"const": None}, {"const": "end"}]})},
        "$ref": "#/$defs/node",
    },
}  # fmt: skip


def finished(stream: TextStream) -> str:
    """The answer, which came to its end by itself."""
    text = stream.read()
    assert stream.stop_reason == "eos", (stream.stop_reason, text)
    return text


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_matches_its_schema(nano: Model, name: str) -> None:
    schema = SCHEMAS[name]
    for options in ({"temperature": 0}, *({"temperature": 1.2, "seed": seed} for seed in range(4))):
        text = finished(nano.chat(LIGHT, json_schema=schema, max_tokens=600, **options))
        jsonschema.validate(json.loads(text), schema)
    text = finished(nano.generate("The kitchen light", json_schema=json.dumps(schema), max_tokens=400))
    jsonschema.validate(json.loads(text), schema)


LEAVES = st.sampled_from(
    [{"type": "boolean"}, {"type": "null"}, SMALL, WORD, {"enum": ["a", "é", 1]}, {"const": "x y"}]
)
FAMILY = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(
            lambda values: closed(**{f"key {index}": value for index, value in enumerate(values)})
        )
        | inner.map(lambda item: {"type": "array", "items": item, "maxItems": 3})
        | st.lists(inner, min_size=1, max_size=3).map(lambda choices: {"anyOf": choices})
    ),
    max_leaves=6,
)


@given(schema=FAMILY, seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_json_matches_any_schema(nano: Model, schema: dict, seed: int) -> None:
    stream = nano.generate("Light:", json_schema=schema, temperature=1.5, seed=seed, max_tokens=1200)
    jsonschema.validate(json.loads(finished(stream)), schema)


def test_any_json(nano: Model) -> None:
    for schema in (True, {}, "true", "{}"):
        stream = nano.generate('The light as JSON: {"on": true}. Again:', json_schema=schema, max_tokens=300)
        json.loads(finished(stream))


@pytest.mark.parametrize(
    "regex",
    ["[a-z]{3,9}", r"(yes|no)( please)?!", r"\d{4}-\d{2}-\d{2}", "(?s:.{30})", "[^a-zA-Z]{5}é", "a|ab|abc"],
)
def test_regex_matches_the_whole_answer(nano: Model, regex: str) -> None:
    for seed in range(5):
        stream = nano.generate("The kitchen", regex=regex, temperature=1.0, seed=seed, max_tokens=100)
        assert re.fullmatch(regex, finished(stream)), stream.text


ARITHMETIC = r"""
start: sum
sum: product (("+" | "-") product){0,2}
product: NUMBER ("*" NUMBER){0,2}
NUMBER: /[1-9][0-9]{0,3}/
"""


def test_answers_follow_a_lark_grammar(nano: Model) -> None:
    for seed in range(5):
        stream = nano.chat(LIGHT, grammar=ARITHMETIC, temperature=2.0, seed=seed, max_tokens=300)
        assert isinstance(eval(compile(ast.parse(finished(stream), mode="eval"), "", "eval")), int)


# Ends


def test_an_answer_that_can_only_end_ends_without_another_pass(nano: Model) -> None:
    for ignore_eos in (False, True):
        stream = nano.generate("The light", regex="[a-z]{5}", ignore_eos=ignore_eos)
        assert len(finished(stream)) == 5
        assert stream._result._decode_steps == len(stream.token_ids) - 1  # the first comes with the prompt


def test_an_answer_cut_off_says_so(nano: Model) -> None:
    stream = nano.generate("The light", json_schema=closed(name=WORD, count=SMALL), max_tokens=4)
    text = stream.read()
    assert stream.stop_reason == "length"
    assert text.startswith("{")
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(text)


def test_an_answer_complete_with_its_last_token_is_not_cut_off(nano: Model) -> None:
    whole = nano.generate("The light", regex="[a-z]{5}")
    whole.read()
    again = nano.generate("The light", regex="[a-z]{5}", max_tokens=len(whole.token_ids))
    assert finished(again) == whole.text


def test_stop_strings_and_deadlines_still_end_it(nano: Model) -> None:
    schema = closed(name=WORD, count=SMALL)
    stream = nano.generate("The light", json_schema=schema, stop='"count')
    assert stream.read().rstrip().endswith(",")
    assert stream.stop_reason == "stop"
    stream = nano.generate("The light", json_schema=schema, deadline=1e-6)
    assert (stream.read(), stream.stop_reason) == ("", "deadline")


# With everything else


def test_candidates_follow_the_grammar_each_for_itself(nano: Model) -> None:
    stream = nano.chat(LIGHT, json_schema=SCHEMAS["nested"], temperature=1.5, seed=3, candidates=4)
    going = list(stream.candidates)
    while going:  # in turns, so that they are all half-way at some time
        going = [candidate for candidate in going if candidate.step()]
    texts = [finished(candidate) for candidate in stream.candidates]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMAS["nested"])
    assert len(set(texts)) > 1


def test_batches_answer_as_alone(nano: Model) -> None:
    prompts = ["The kitchen light", "Set a timer", "Play"]
    options: Any = {"json_schema": SCHEMAS["nested"], "max_tokens": 200}
    together = [answer.read() for answer in nano.generate_batch(prompts, at_once=2, **options)]
    assert together == [nano.generate(prompt, **options).read() for prompt in prompts]


def test_drafts_change_nothing(nano: Model) -> None:
    prompt = '{"room": "kitchen", "lamp": {"on": true, "levels": [1, 2, 3]}}\n'
    plain = nano.generate(prompt, json_schema=SCHEMAS["nested"], max_tokens=200)
    drafted = nano.generate(prompt, json_schema=SCHEMAS["nested"], max_tokens=200, speculate=True)
    assert finished(drafted) == finished(plain)


def test_logprobs_are_the_models_own(nano: Model) -> None:
    free = nano.generate("The light", max_tokens=1, logprobs=3)
    held = nano.generate("The light", max_tokens=1, logprobs=3, regex="[A-Z]{3}")
    free.read(), held.read()
    assert held.logprobs[0].alternatives == free.logprobs[0].alternatives


def test_bans_that_leave_nothing_are_an_error(nano: Model) -> None:
    digits = [
        token for token in range(nano.tokenizer.vocab_size) if nano.tokenizer.token_bytes(token) == b"7"
    ]
    stream = nano.generate("The light", regex="7", banned_ids=digits)
    with pytest.raises(GenerationError, match="leaves no token to choose"):
        stream.read()
    assert stream.stop_reason == "error"


# Reasoning


def test_reasoning_is_free_and_the_answer_is_not(nano: Model) -> None:
    regex = "[A-Z][a-z]{2,8}!"
    free = nano.chat(LIGHT, enable_thinking=True, temperature=0)
    free.read()
    assert free.reasoning
    stream = nano.chat(LIGHT, enable_thinking=True, temperature=0, regex=regex)
    assert re.fullmatch(regex, finished(stream))
    assert stream.reasoning == free.reasoning


def test_the_grammar_begins_behind_a_budget(nano: Model) -> None:
    for budget in (0, 5):
        stream = nano.chat(LIGHT, thinking_budget=budget, temperature=0, json_schema=SCHEMAS["object"])
        jsonschema.validate(json.loads(finished(stream)), SCHEMAS["object"])
        assert bool(stream.reasoning) == bool(budget)


def test_reasoning_does_not_end_the_answer(nano: Model) -> None:
    """End tokens are not allowed in it, however much they are favoured."""
    bias = dict.fromkeys(nano.manifest.generation.eos_token_ids, 100.0)
    stream = nano.chat(LIGHT, enable_thinking=True, temperature=0, regex="[a-z]{3}", logit_bias=bias)
    assert len(finished(stream)) == 3
    assert stream.reasoning


def test_text_that_reads_like_a_tag_is_answer(nano: Model) -> None:
    for text in ('"<tool_call>{}</tool_call>"', "a <think> b </think> c", "  x \n"):
        stream = nano.chat(LIGHT, enable_thinking=False, grammar=f"start: {json.dumps(text)}")
        assert finished(stream) == text
        assert not stream.reasoning
        assert not (stream.tool_calls or stream.malformed_tool_calls)


# Tools


def tool(name: str, parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


LAMP = {"type": "object", "properties": {"room": WORD, "on": {"type": "boolean"}}}
TREE = {
    "$defs": {"leaf": SMALL},
    "type": "object",
    "properties": {"leaf": {"$ref": "#/$defs/leaf"}},
    "required": ["leaf"],
}
TOOLS = [
    tool("set_timer", closed(minutes=SMALL)),
    {"name": "lights", "parameters": LAMP},
    tool('say "é"\\', closed(text={"enum": ["</tool_call>", "<tool_call>", 'a "quote"']})),
    tool("stop", None),
    tool("tree", TREE),
]
NAMES = [(each.get("function") or each)["name"] for each in TOOLS]
PARAMETERS = {
    name: {**((each.get("function") or each)["parameters"] or {}), "additionalProperties": False}
    for name, each in zip(NAMES, TOOLS, strict=True)
}


@pytest.mark.parametrize("name", NAMES)
def test_the_call_of_a_named_tool_always_parses(nano: Model, name: str) -> None:
    for options in ({"temperature": 0}, *({"temperature": 1.5, "seed": seed} for seed in range(4))):
        for enable_thinking in (False, True):
            stream = nano.chat(
                LIGHT,
                tools=TOOLS,
                tool_choice=name,
                enable_thinking=enable_thinking,
                max_tokens=900,
                **options,
            )
            assert finished(stream) == ""
            (call,) = stream.tool_calls
            assert call.name == name
            jsonschema.validate(call.arguments, PARAMETERS[name])
            assert not stream.malformed_tool_calls


def test_required_calls_always_parse(nano: Model) -> None:
    for seed in range(8):
        stream = nano.chat(
            LIGHT, tools=TOOLS, tool_choice="required", temperature=1.0, seed=seed, max_tokens=900
        )
        stream.read()
        assert stream.text == ""
        assert stream.tool_calls or stream.stop_reason == "length"
        for call in stream.tool_calls:
            jsonschema.validate(call.arguments, PARAMETERS[call.name])
        assert stream.stop_reason == "length" or not stream.malformed_tool_calls


def test_an_answer_or_calls(nano: Model) -> None:
    """With tools and a schema the model may do either; a bias decides here."""
    call, quote = (nano.tokenizer.single_token(text) for text in ("<tool_call>", '"'))
    for favoured in (call, quote):
        stream = nano.chat(
            LIGHT,
            tools=TOOLS[:2],
            json_schema={"enum": ["yes", "no"]},
            temperature=0,
            enable_thinking=False,
            logit_bias={favoured: 100.0},
            max_tokens=60,
        )
        text = stream.read()
        if favoured == quote:
            assert text in ('"yes"', '"no"')
            assert stream.stop_reason == "eos"
        else:
            assert text == ""
            assert stream.tool_calls or stream.malformed_tool_calls


def test_what_comes_is_streamed(nano: Model) -> None:
    stream = nano.chat(LIGHT, json_schema=SCHEMAS["nested"], enable_thinking=False)
    pieces = [event.text for event in stream.events() if isinstance(event, AnswerText)]
    assert len(pieces) > 5
    json.loads("".join(pieces))


def one(parameters: Any) -> dict[str, Any]:
    """Options that ask for the call of a tool with these parameters."""
    return {"tool_choice": "f", "tools": [tool("f", parameters)]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tool_choice": "required"}, "tool_choice is 'required', but there are no tools"),
        ({"tool_choice": "cook", "tools": TOOLS[:1]}, "is 'cook'; valid: 'auto', 'required', 'set_timer'"),
        ({"tool_choice": 5, "tools": TOOLS}, "tool_choice is 5; valid"),
        ({"tool_choice": "stop", "tools": TOOLS, "regex": "a"}, "both regex and tool_choice are given"),
        (one({"type": "array"}), "parameters of 'f' are .*; valid: the schema of an object"),
        (one([1]), "parameters of 'f' are .*; valid"),
        (one({"not": {}}), "parameters of 'f' cannot be used: Unimplemented"),
    ],
)
@pytest.mark.usefixtures("never_run")
def test_bad_choices(model: Model, options: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        model.chat(LIGHT, **options)


def test_auto_asks_nothing_of_the_tools(nano: Model) -> None:
    plain = nano.chat(LIGHT, tools=TOOLS, temperature=0)
    chosen = nano.chat(LIGHT, tools=TOOLS, temperature=0, tool_choice="auto")
    assert chosen.read() == plain.read()
