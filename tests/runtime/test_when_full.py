"""What happens where prompt and answer pass the context: the caller chooses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool_runtime import Model, load
from qtool_runtime.errors import ContextLimitError, GenerationError
from qtool_runtime.turns import without_oldest

from .conftest import TEMPLATE
from .decoder_graphs import TinyDecoder, write_artifact

CONTEXT = 400


@pytest.fixture(scope="module", params=["in_place", "concatenate"])
def model(request: pytest.FixtureRequest, tmp_path_factory, tokenizer_json: bytes, engine: str):
    folder = tmp_path_factory.mktemp(request.param)
    extra = {"tokenizer.json": tokenizer_json, "chat_template.jinja": TEMPLATE.encode()}
    write_artifact(folder, TinyDecoder(update=request.param, context=CONTEXT), extra)
    with load(folder, threads=1, engine=engine, prefix_memory=0) as loaded:
        yield loaded


@pytest.fixture
def prompts(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Token ids of every forward pass over more than one token."""
    seen: list[list[int]] = []
    session = type(model.new_session())
    forward = session.forward

    def recorded(self, token_ids, rows: int = 1):
        if len(token_ids) > 1:
            seen.append([int(token) for token in token_ids])
        return forward(self, token_ids, rows)

    monkeypatch.setattr(session, "forward", recorded)
    return seen


def conversation(turns: int) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": "the system"}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"question {turn} the cat sat on the mat"})
        messages.append({"role": "assistant", "content": f"answer {turn} the café"})
    return messages[:-1]


@given(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=12), st.integers(0, 6))
def test_the_oldest_turns_go(roles: list[str], turns: int) -> None:
    messages = [{"role": role, "content": str(index)} for index, role in enumerate(roles)]
    kept = without_oldest(messages, turns)
    if turns == 0:
        assert kept == messages
    elif turns >= roles.count("user"):
        assert kept is None
    else:
        head = roles.index("user")
        assert kept[:head] == messages[:head]
        assert kept[head]["role"] == "user"
        assert kept[head:] == messages[len(messages) - len(kept[head:]) :]
        assert [message["role"] for message in kept].count("user") == roles.count("user") - turns


@pytest.mark.usefixtures("never_run")
def test_error_refuses_before_any_work(model: Model) -> None:
    for options in ({}, {"when_full": "error"}):
        with pytest.raises(ContextLimitError, match=f"together at most {CONTEXT} fit"):
            model.generate([1] * 350, max_tokens=51, **options)
        with pytest.raises(ContextLimitError):
            model.chat(conversation(40), **options)


def test_stop_ends_the_answer_where_the_context_ends(model: Model) -> None:
    stream = model.generate([1] * 350, max_tokens=200, when_full="stop", ignore_eos=True)
    stream.read()
    assert stream.stop_reason == "context"
    assert len(stream.token_ids) == 50
    with pytest.raises(ContextLimitError):
        model.generate([1] * 400, when_full="stop")


def test_dropping_turns_keeps_the_system_message_and_the_last_turn(model: Model, prompts) -> None:
    messages = conversation(20)
    stream = model.chat(messages, max_tokens=60, when_full="drop_oldest", ignore_eos=True)
    stream.read()
    assert stream.stop_reason == "length"
    text = model.tokenizer.decode(prompts[0])
    assert "the system" in text
    assert "question 19" in text
    assert "question 0 " not in text
    assert len(prompts[0]) + 60 <= CONTEXT
    kept = text.count("question")
    longer = without_oldest(messages, 20 - kept - 1)
    rendered = model.chat_template.render(longer)
    assert len(model.tokenizer.encode(rendered)) + 60 > CONTEXT  # as many turns as fit were kept


def test_a_last_turn_that_is_too_long_is_refused(model: Model) -> None:
    with pytest.raises(ContextLimitError, match="the last turn alone leaves no room for an answer of 390"):
        model.chat(conversation(5), when_full="drop_oldest", max_tokens=390)
    with pytest.raises(GenerationError, match="max_tokens is 'x'"):
        model.chat(conversation(5), when_full="drop_oldest", max_tokens="x")


def test_an_endless_answer_drops_turn_after_turn(model: Model, prompts) -> None:
    messages = conversation(8)
    stream = model.chat(messages, when_full="drop_oldest", ignore_eos=True, temperature=0)
    stream.read()
    answer = list(stream.token_ids)
    assert len(prompts) > 2  # the first one, and shorter ones with the answer so far behind them
    for prompt in prompts[1:]:
        text = model.tokenizer.decode(prompt)
        assert "the system" in text
        assert "question 7" in text
        assert any(prompt[-count:] == answer[:count] for count in range(1, len(prompt)))
        assert len(prompt) < CONTEXT
    kept = [model.tokenizer.decode(prompt).count("question") for prompt in prompts]
    assert kept == sorted(set(kept), reverse=True)
    # At the end there are no more turns to drop.
    assert stream.stop_reason == "context"
    assert len(answer) > CONTEXT // 2
    # What follows a drop is what the model says behind the shorter prompt.
    count = next(count for count in range(1, len(answer)) if prompts[1][-count:] == answer[:count])
    again = model.generate(prompts[1], max_tokens=5, repetition_penalty=1, ignore_eos=True)
    again.read()
    assert answer[count : count + 5] == list(again.token_ids)


@pytest.mark.parametrize("when_full", ["never", "", 3, "drop_oldest"])
def test_bad_policies(model: Model, when_full) -> None:
    with pytest.raises(GenerationError, match="valid: error, stop"):
        model.generate("the", when_full=when_full)
