"""A thinking budget is kept, whatever the tokenizer makes of the closing tag."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from qtool_runtime import Model, load
from qtool_runtime.chat import ChatTemplate
from qtool_runtime.errors import GenerationError
from qtool_runtime.manifest import Generation
from qtool_runtime.text import Tokenizer
from qtool_runtime.thinking import ThinkingBudget

from .decoder_graphs import TinyDecoder, write_artifact

MESSAGES = [{"role": "user", "content": "the café"}]
OPENING = (
    "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>\n"
)
NO_EOS = Generation(None, (), None, False, 1.0, 0, 1.0, 1.0)
SPELLINGS = {
    "several tokens": [],
    "one token": [("</think>", False)],
    "one special token": [("</think>", True)],
}


def with_tags(tokenizer_json: bytes, spelling: str) -> bytes:
    backend = Backend.from_str(tokenizer_json.decode())
    for name, special in SPELLINGS[spelling]:
        token = AddedToken(name, special=special, normalized=False)
        (backend.add_special_tokens if special else backend.add_tokens)([token])
    return backend.to_str().encode()


@pytest.fixture(scope="module", params=sorted(SPELLINGS))
def thinker(request: pytest.FixtureRequest, tmp_path_factory, tokenizer_json: bytes, engine: str):
    """A model whose template opens the reasoning, so that it always thinks; it never stops by itself."""
    folder: Path = tmp_path_factory.mktemp("thinker")
    files = {
        "tokenizer.json": with_tags(tokenizer_json, request.param),
        "chat_template.jinja": OPENING.encode(),
    }
    write_artifact(folder, TinyDecoder(context=200), files, generation=NO_EOS)
    with load(folder, threads=1, engine=engine) as model:
        yield model


def closing(model: Model) -> list[int]:
    return model.tokenizer.encode("\n</think>\n\n", add_special_tokens=False)


@pytest.mark.parametrize("budget", [1, 7, 30])
def test_budget_closes_the_reasoning_and_the_answer_follows(thinker: Model, budget: int) -> None:
    free = thinker.chat(MESSAGES, max_tokens=60)
    free.read()
    assert (free.text, bool(free.reasoning)) == ("", True)

    forced = closing(thinker)
    stream = thinker.chat(MESSAGES, max_tokens=60, thinking_budget=budget)
    answer = "".join(stream)
    assert stream.token_ids[:budget] == free.token_ids[:budget]
    assert list(stream.token_ids[budget : budget + len(forced)]) == forced
    assert stream.stats.forced_tokens == len(forced)
    assert (len(stream.token_ids), stream.stop_reason) == (60, "length")
    assert stream.reasoning == thinker.tokenizer.decode(free.token_ids[:budget]).strip("\n")

    # The tag is in the cache too: the answer is that of a prompt which ends with it.
    prompt = [*prompt_ids(thinker), *stream.token_ids[: budget + len(forced)]]
    expected = thinker.generate(prompt, max_tokens=60 - budget - len(forced))
    assert answer.lstrip() == stream.text.lstrip() == expected.read().lstrip()
    assert stream.token_ids[budget + len(forced) :] == expected.token_ids


@pytest.mark.parametrize("budget", [1, 7, 30])
def test_a_grammar_begins_behind_the_closing_tag(thinker: Model, budget: int) -> None:
    pytest.importorskip("llguidance", reason="needs llguidance (the extra `structured`)")
    free = thinker.chat(MESSAGES, max_tokens=budget)
    free.read()
    stream = thinker.chat(MESSAGES, max_tokens=80, thinking_budget=budget, regex="[a-c]{4}")
    assert re.fullmatch("[a-c]{4}", stream.read())
    assert stream.stop_reason == "eos"
    assert stream.token_ids[:budget] == free.token_ids
    assert stream.stats.forced_tokens == len(closing(thinker))


def prompt_ids(model: Model) -> list[int]:
    text = model.chat_template.render(MESSAGES)
    return model.tokenizer.encode(text, add_special_tokens=False)


def test_budget_of_nothing_closes_what_the_template_opened(thinker: Model) -> None:
    stream = thinker.chat(MESSAGES, max_tokens=10, thinking_budget=0)
    stream.read()
    assert stream.stats.prompt_tokens == len(prompt_ids(thinker)) + len(closing(thinker))
    assert (stream.reasoning, stream.stats.forced_tokens) == ("", 0)
    expected = thinker.generate([*prompt_ids(thinker), *closing(thinker)], max_tokens=10)
    expected.read()
    assert stream.token_ids == expected.token_ids


def test_budget_of_nothing_is_told_to_the_template(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    render = ChatTemplate.render

    def listening(self: ChatTemplate, messages: list, **options) -> str:
        told.append(options["enable_thinking"])
        return render(self, messages, **options)

    monkeypatch.setattr(ChatTemplate, "render", listening)
    for options in ({"thinking_budget": 0}, {"thinking_budget": 5}, {"enable_thinking": True}):
        model.chat(MESSAGES, **options)
    assert told == [False, None, True]


def test_forced_tokens_have_logprobs_and_count_for_penalties(thinker: Model) -> None:
    stream = thinker.chat(MESSAGES, max_tokens=40, thinking_budget=5, logprobs=1, presence_penalty=1.0)
    stream.read()
    assert [record.token_id for record in stream.logprobs] == list(stream.token_ids)
    assert all(record.logprob <= 0 for record in stream.logprobs)


@pytest.mark.parametrize("spelling", sorted(SPELLINGS))
def test_reasoning_that_ends_in_time_is_left_alone(tokenizer_json: bytes, spelling: str) -> None:
    tokenizer = Tokenizer(Backend.from_str(with_tags(tokenizer_json, spelling).decode()))
    budget = ThinkingBudget(30, tokenizer, opened=False)
    text = "<think>\nthe cat\n</think>\n\n" + "the cat sat on the mat, the café " * 5
    assert not any(budget(token) for token in tokenizer.encode(text))


@pytest.mark.parametrize("spelling", sorted(SPELLINGS))
def test_only_tokens_within_reasoning_count(tokenizer_json: bytes, spelling: str) -> None:
    tokenizer = Tokenizer(Backend.from_str(with_tags(tokenizer_json, spelling).decode()))
    budget = ThinkingBudget(3, tokenizer, opened=False)
    answers = [list(budget(token)) for token in tokenizer.encode("\n<think>\na b c d e")]
    assert [index for index, forced in enumerate(answers) if forced] == [1 + 3]  # "\n", then the tag is 1
    plain = ThinkingBudget(3, tokenizer, opened=False)
    assert not any(plain(token) for token in tokenizer.encode("No <think> here, however long it is"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thinking_budget": -1}, "thinking_budget is -1; valid: None, or a count of tokens from 0"),
        ({"thinking_budget": 1.5}, "thinking_budget is 1.5"),
        ({"thinking_budget": True}, "thinking_budget is True"),
        ({"thinking_budget": 0, "enable_thinking": True}, "thinking_budget is 0 and enable_thinking is True"),
        ({"tools": [{"type": "function"}]}, "tool 0 is .*; valid: a mapping with a function name"),
    ],
)
@pytest.mark.usefixtures("never_run")
def test_bad_options(model: Model, options: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        model.chat(MESSAGES, **options)


# The embedded model thinks and calls tools


LIGHT = [{"role": "user", "content": "Turn on the kitchen light"}]


def test_nano_thinks_and_calls_a_tool(nano: Model) -> None:
    stream = nano.chat(LIGHT, max_tokens=200, temperature=0, enable_thinking=True)
    assert stream.read() == ""
    assert stream.reasoning
    (call,) = stream.tool_calls
    assert call.arguments["room"] == "kitchen"
    assert stream.stop_reason == "eos"
    message = stream.message()
    assert message["tool_calls"][0]["function"] == {"name": call.name, "arguments": call.arguments}
    turns = [*LIGHT, message, {"role": "tool", "content": '{"ok": true}'}]
    assert nano.chat(turns, max_tokens=60, temperature=0).read()


def test_nanos_turn_is_rendered_as_it_was_generated(nano: Model) -> None:
    stream = nano.chat(LIGHT, max_tokens=200, temperature=0, enable_thinking=True)
    stream.read()
    generated = nano.tokenizer.decode(stream.token_ids, skip_special_tokens=False)
    rendered = nano.chat_template.render([*LIGHT, stream.message()], add_generation_prompt=False)
    assert rendered.endswith(f"<|im_start|>assistant\n{generated}<|im_end|>\n")


def test_nano_answers_within_its_budget(nano: Model) -> None:
    free = nano.chat(LIGHT, max_tokens=200, temperature=0, enable_thinking=True)
    free.read()
    stream = nano.chat(LIGHT, max_tokens=200, temperature=0, enable_thinking=True, thinking_budget=3)
    stream.read()
    assert len(nano.tokenizer.encode(stream.reasoning)) <= 3
    assert stream.stats.forced_tokens == len(closing(nano))
    assert stream.stop_reason == "eos"
    assert stream.tool_calls or stream.text
    none = nano.chat(LIGHT, max_tokens=200, temperature=0, thinking_budget=0)
    none.read()
    assert none.reasoning == ""
    assert none.stats.forced_tokens == 0
    assert none.tool_calls or none.text
