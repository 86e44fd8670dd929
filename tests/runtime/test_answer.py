"""Reasoning, text and tool calls, told apart the same way wherever the text is cut."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qtool_runtime.answer import AnswerParser, AnswerText, Event, ReasoningText
from qtool_runtime.errors import GenerationError
from qtool_runtime.text import StopStrings
from qtool_runtime.tools import MalformedToolCall, ToolCall, check_tools

FRAGMENTS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<", "</", "<tool", "think>", "\n", " ", "a", "é😀",
    '{"name": "f", "arguments": {"x": 1}}', '{"name": "g"}', '{"name": ', "[1]", "}", "<|im_end|>",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


def parse(pieces: list[str], opened: bool = False, constrained: bool = False) -> list[Event]:
    """Events with the neighbours of one kind joined, for pieces of text may come in any number."""
    parser = AnswerParser(opened=opened, constrained=constrained)
    events = [event for piece in pieces for event in parser.push(piece)]
    joined: list[Event] = []
    for event in [*events, *parser.finish()]:
        previous = joined[-1] if joined else None
        if isinstance(event, ReasoningText) and isinstance(previous, ReasoningText):
            joined[-1] = ReasoningText(previous.text + event.text)
        elif isinstance(event, AnswerText) and isinstance(previous, AnswerText):
            joined[-1] = AnswerText(previous.text + event.text)
        else:
            joined.append(event)
    return joined


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@given(
    text=TEXTS,
    cuts=st.lists(st.integers(0, 120), max_size=30),
    opened=st.booleans(),
    constrained=st.booleans(),
)
@example(text="<think>\n\na\n\n</think>\n\na\n", cuts=list(range(30)), opened=False, constrained=False)
def test_cuts_make_no_difference(text: str, cuts: list[int], opened: bool, constrained: bool) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert parse(pieces, opened, constrained) == parse([text], opened, constrained)


@given(text=TEXTS)
def test_a_constrained_answer_is_its_text_to_the_letter(text: str) -> None:
    if not text.lstrip().startswith(("<think>", "<tool_call>")):
        assert parse(list(text), constrained=True) == ([AnswerText(text)] if text else [])


def test_tags_in_strings_of_constrained_calls_are_part_of_them() -> None:
    texts = [call("f", a="</tool_call>"), call("g", b="<tool_call>{}</tool_call>")]
    events = parse(["<think>x</think>\n\n", "\n".join(texts)], constrained=True)
    assert events[0] == ReasoningText("x")
    assert [event.arguments for event in events[1:]] == [
        {"a": "</tool_call>"}, {"b": "<tool_call>{}</tool_call>"}
    ]  # fmt: skip
    (cut_off,) = parse(['<tool_call>\n{"name": "f</tool_call>'], constrained=True)
    assert isinstance(cut_off, MalformedToolCall)


@given(text=TEXTS, opened=st.booleans())
def test_nothing_is_lost_but_tags_and_white_space(text: str, opened: bool) -> None:
    whole = ""
    for event in parse(list(text), opened):
        whole += event.text if isinstance(event, ReasoningText | AnswerText) else event.raw

    def visible(text: str) -> str:
        return re.sub(r"[\s<>/]|think|tool_call|tool", "", text)  # tags may be put together from pieces

    assert visible(whole) == visible(text)


@given(text=st.text(st.sampled_from("<>ab /\n")))
def test_text_without_tags_is_the_answer_as_it_is(text: str) -> None:
    parser = AnswerParser()
    assert "".join(event.text for piece in text for event in parser.push(piece)) + "".join(  # type: ignore[union-attr]
        event.text for event in parser.finish()  # type: ignore[union-attr]
    ) == text  # fmt: skip


def test_text_is_passed_on_at_once() -> None:
    parser = AnswerParser()
    assert list(parser.push("One")) == [AnswerText("One")]
    assert list(parser.push(" two <")) == [AnswerText(" two")]
    assert list(parser.push("b>")) == [AnswerText(" <b>")]


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "answer"),
    [
        ("<think>\nWhy.\n\nSo.\n</think>\n\nYes.", False, "Why.\n\nSo.", "Yes."),
        ("Why.\n</think>\n\nYes.", True, "Why.", "Yes."),
        ("<think>\n\n</think>\n\nYes.\n", False, "", "Yes.\n"),
        (" \n<think>Why.", False, "Why.", ""),  # ended within
        ("Write <think> for that.", False, "", "Write <think> for that."),
        ("Done.</think> and <think>x</think>", False, "", "Done.</think> and <think>x</think>"),
        ("<think>a<tool_call>b</think>c", False, "a<tool_call>b", "c"),
        ("<think>a</think><think>b</think>", False, "a", "<think>b</think>"),
    ],
)
def test_reasoning(text: str, opened: bool, reasoning: str, answer: str) -> None:
    events = parse([text], opened)
    assert "".join(event.text for event in events if isinstance(event, ReasoningText)) == reasoning
    assert "".join(event.text for event in events if isinstance(event, AnswerText)) == answer


def test_calls_among_text() -> None:
    text = f"<think>\nBoth.\n</think>\n\nOne moment.\n{call('f', x=1)}\n{call('g')}\n\nThere."
    assert parse(list(text)) == [
        ReasoningText("Both."),
        AnswerText("One moment."),
        ToolCall("f", {"x": 1}, '\n{"name": "f", "arguments": {"x": 1}}\n'),
        ToolCall("g", {}, '\n{"name": "g", "arguments": {}}\n'),
        AnswerText("\nThere."),
    ]
    assert parse([call("f") + "\n"]) == [ToolCall("f", {}, '\n{"name": "f", "arguments": {}}\n')]


def test_a_call_comes_as_soon_as_it_is_closed() -> None:
    parser, text = AnswerParser(), call("f")
    assert not list(parser.push(text[:-1]))
    assert [type(event) for event in parser.push(">")] == [ToolCall]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("{'name': 'f'}", "it is not JSON: Expecting property name"),
        ("", "it is not JSON"),
        ('{"name": "f"', "it is not JSON"),
        ('{"name": "f", "arguments": {"x": NaN}}', "it is not JSON: NaN is no number"),
        ("[1]", "it is not an object"),
        ('{"arguments": {}}', 'it has no "name"'),
        ('{"name": "", "arguments": {}}', "its \"name\" is ''"),
        ('{"name": 5}', 'its "name" is 5'),
        ('{"name": "f", "arguments": [1]}', 'its "arguments" are not an object'),
        ('{"name": "f", "arguments": "x"}', "it is not JSON"),
        ("[" * 100_000, ""),
        ('{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}", ""),
    ],
)
def test_malformed_calls_are_reported(raw: str, reason: str) -> None:
    before, event, after = parse([f"a <tool_call>{raw}</tool_call> b"])
    assert (before, after) == (AnswerText("a"), AnswerText(" b"))
    assert isinstance(event, MalformedToolCall)
    assert event.raw == raw
    assert reason in event.reason


def test_unclosed_calls_are_reported() -> None:
    events = parse(['<tool_call>{"name": "f"}<tool_call>{"name": "g"}</tool_call><tool_call>{"na'])
    assert events == [
        MalformedToolCall('{"name": "f"}', "it has no </tool_call>"),
        ToolCall("g", {}, '{"name": "g"}'),
        MalformedToolCall('{"na', "it has no </tool_call>"),
    ]


def test_many_unclosed_calls_at_once() -> None:
    assert len(parse(["<tool_call>" * 5000])) == 5000


@given(
    st.text(min_size=1),
    st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5)),
    st.booleans(),
)
def test_any_arguments_arrive(name: str, arguments: dict, as_text: bool) -> None:
    given = json.dumps(arguments).replace("<", "\\u003c") if as_text else arguments
    raw = json.dumps({"name": name, "arguments": given}).replace("<", "\\u003c")
    assert parse(list(f"<tool_call>{raw}</tool_call>")) == [ToolCall(name, arguments, raw)]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("f", "tools is 'f'; valid"),
        ({"name": "f"}, "tools is {'name': 'f'}; valid"),
        ([5], "tool 0 is 5; valid: a mapping with a function name"),
        ([{"name": "f"}, {}], "tool 1 is {}; valid"),
        ([{"type": "function", "function": {"description": "f"}}], "tool 0 is"),
        ([{"type": "function", "function": "f"}], "tool 0 is"),
        ([{"name": ""}], "tool 0 is"),
        ([{"name": "f"}, {"function": {"name": "f"}}], "tool 1 is called 'f', as another one"),
    ],
)
def test_bad_tools_are_refused(tools: object, message: str) -> None:
    with pytest.raises(GenerationError, match=re.escape(message)):
        check_tools(tools)  # type: ignore[arg-type]


def test_both_forms_of_tools_are_taken() -> None:
    check_tools([{"type": "function", "function": {"name": "f", "parameters": {}}}, {"name": "g"}])
    check_tools([])
    check_tools(None)


@given(
    text=TEXTS,
    cuts=st.lists(st.integers(0, 120), max_size=20),
    stop=st.sampled_from(["a<", "}\n", "é😀", "ink>"]),
)
def test_stop_strings_end_reasoning_and_calls_too(text: str, cuts: list[int], stop: str) -> None:
    """The text ends before the stop string wherever that is; what was open then is reported as such."""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stops = StopStrings([stop])
    pieces = [stops.push(text[start:end]) for start, end in pairwise(places)]
    assert parse([*pieces, stops.finish()]) == parse([text.split(stop, maxsplit=1)[0]])
