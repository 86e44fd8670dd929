"""Turns of a conversation with the embedded model: each one reads only what is new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import qtool
import qtool_runtime
from qtool_runtime import Model
from qtool_runtime.conversation import encode_conversation
from qtool_runtime.session import OnnxSession

TURNS = ("Turn on the kitchen light", "What is 7 + 5?", "Set a timer for 5 minutes", "What can you do?")
SYSTEM = {"role": "system", "content": "You are nano, the assistant of a house. Answer in a few words."}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qtool.build(target="x64-int4", output=tmp_path_factory.mktemp("nano") / "artifact").path


@pytest.fixture
def model(artifact: Path) -> Iterator[Model]:
    with qtool_runtime.load(artifact, threads=1) as loaded:
        yield loaded


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The token ids of every forward pass."""
    passes: list[list[int]] = []
    forward = OnnxSession.forward

    def record(session: OnnxSession, token_ids: Any, rows: int = 1) -> Any:
        passes.append([int(token) for token in token_ids])
        return forward(session, token_ids, rows)

    monkeypatch.setattr(OnnxSession, "forward", record)
    return passes


def prompt_tokens(model: Model, messages: list[dict[str, Any]], thinking: bool) -> list[int]:
    tokens, _ = encode_conversation(
        model.chat_template, model.tokenizer, messages, tools=None, enable_thinking=thinking
    )
    return tokens.tolist()


def common(one: Sequence[int], other: Sequence[int]) -> int:
    shortest = min(len(one), len(other))
    return next((index for index in range(shortest) if one[index] != other[index]), shortest)


@pytest.mark.parametrize("thinking", [False, True])
def test_a_turn_reads_what_no_turn_before_it_has_read(
    model: Model, read: list[list[int]], thinking: bool
) -> None:
    """With reasoning, which the template leaves out of earlier answers, up to where the answer differs."""
    messages: list[dict[str, Any]] = [SYSTEM]
    held: list[list[int]] = []  # prompts and answers so far
    answered = 0
    for turn in TURNS:
        messages.append({"role": "user", "content": turn})
        read.clear()
        stream = model.chat(messages, enable_thinking=thinking, temperature=0, max_tokens=120)
        stream.read()
        stats = stream.stats
        prompt = prompt_tokens(model, messages, thinking)
        known = max((common(tokens, prompt) for tokens in held), default=0)
        assert stats.cached_tokens == min(known, len(prompt) - 2)
        assert read[0] == prompt[stats.cached_tokens :]
        assert bool(stream.reasoning) == thinking
        if held:
            new = len(model.tokenizer.encode(turn)) + answered
            assert len(read[0]) <= new + 20  # and control tokens around them
        held.append([*prompt, *stream.token_ids[: sum(map(len, read)) - len(read[0])]])
        messages.append(stream.message())
        answered = len(stream.token_ids)


def test_the_same_question_gets_the_same_answer(model: Model) -> None:
    for turn in TURNS:
        streams = [
            model.chat([SYSTEM, {"role": "user", "content": turn}], temperature=0, max_tokens=60, logprobs=0)
            for _ in range(2)
        ]
        for stream in streams:
            stream.read()
        assert streams[1].stats.cached_tokens == streams[1].stats.prompt_tokens - 2
        assert streams[0].token_ids == streams[1].token_ids
        first, second = ([record.logprob for record in stream.logprobs] for stream in streams)
        assert second == pytest.approx(first, abs=0.01)  # equal where two rows round like forty
