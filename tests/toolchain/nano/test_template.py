"""The chat template renders the exact strings that the model was trained on."""

from __future__ import annotations

from qtool.nano.corpus import train_examples
from qtool.nano.devices import TOOLS
from qtool.nano.template import fold_tools, render
from qtool.nano.unit import Message, call_message, tool_call

QUESTION: Message = {"role": "user", "content": "Hi"}


def test_thinking_on_leaves_the_turn_open() -> None:
    assert render([QUESTION]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_thinking_off_closes_an_empty_block() -> None:
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert render([QUESTION], thinking=False) == expected


def test_system_message_and_no_generation_prompt() -> None:
    messages: list[Message] = [{"role": "system", "content": "Be brief."}, QUESTION]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert render(messages, add_generation_prompt=False) == expected


def test_tools_are_listed_one_a_line() -> None:
    text = render([QUESTION], tools=[{"name": "a", "note": "<ü>"}, {"name": "b"}])
    assert text == (
        '<|im_start|>system\n# Tools\n<tools>\n{"name": "a", "note": "<ü>"}\n{"name": "b"}\n</tools>\n'
        'Call a tool like this:\n<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tool_call_and_responses() -> None:
    messages: list[Message] = [
        QUESTION,
        call_message("get_lock", {"door": "front"}),
        {"role": "tool", "content": '{"state": "locked"}'},
        {"role": "tool", "content": "{}"},
    ]
    assert render(messages) == (
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
        '<tool_call>\n{"name": "get_lock", "arguments": {"door": "front"}}\n</tool_call><|im_end|>\n'
        '<|im_start|>user\n<tool_response>\n{"state": "locked"}\n</tool_response>\n'
        "<tool_response>\n{}\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_reasoning_of_earlier_turns_is_dropped() -> None:
    answer: Message = {"role": "assistant", "content": "2.", "reasoning_content": "1 + 1"}
    inline: Message = {"role": "assistant", "content": "<think>\n1 + 1\n</think>\n\n2."}
    for earlier in (answer, inline):
        text = render([QUESTION, earlier, QUESTION])
        assert "1 + 1" not in text
        assert "<|im_start|>assistant\n2.<|im_end|>\n" in text


def test_reasoning_after_the_last_question_stays() -> None:
    """A model that called a tool still sees why when the tool has answered."""
    call = dict(call_message("get_lock", {"door": "front"})) | {"reasoning_content": "Ask the lock."}
    text = render([QUESTION, call, {"role": "tool", "content": "{}"}])
    assert "<think>\nAsk the lock.\n</think>\n\n<tool_call>" in text


def test_folded_tools_render_to_the_same_prompt() -> None:
    for example in train_examples(3, 2_000):
        folded = fold_tools(example.messages, example.tools)
        assert render(folded) == render(example.messages, tools=example.tools)
    for messages in ([QUESTION], [{"role": "system", "content": "Be brief."}, QUESTION]):
        assert render(fold_tools(messages, TOOLS)) == render(messages, tools=TOOLS)


def test_structured_and_written_tool_calls_render_alike() -> None:
    arguments = {"room": "attic", "state": "on"}
    structured = call_message("set_light", arguments)
    written: Message = {"role": "assistant", "content": tool_call("set_light", arguments)}
    assert render([QUESTION, structured, QUESTION]) == render([QUESTION, written, QUESTION])
