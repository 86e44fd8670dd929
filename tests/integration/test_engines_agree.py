"""One artifact, several ways to run it: our runtime on each engine, a naive loop, onnxruntime-genai alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qtool
import qtool_runtime
import qtool_targets
from support.fixtures import Artifacts, Checkpoints
from support.genai import greedy
from support.raw_session import RawSession
from support.tiny import write_tiny_checkpoint

PROMPT = "Hello world in the"
"""Each word is a token that the tiny tokenizer's merges lead to. (onnxruntime-genai takes a word that is in
the vocabulary whole, even where they do not.)"""
CPU_TARGETS = [name for name in qtool_targets.names() if qtool_targets.load(name).execution.provider == "cpu"]
each_cpu_artifact = pytest.mark.parametrize(
    ("target", "architecture"), [(target, name) for target in CPU_TARGETS for name in ("qwen2", "qwen3")]
)


def ours(folder: Path, prompt: str, count: int, *, ignore_eos: bool = False, **options: Any) -> list[int]:
    with qtool_runtime.load(folder, threads=1, **options) as model:
        stream = model.generate(prompt, max_tokens=count, ignore_eos=ignore_eos)
        stream.read()
        return list(stream.token_ids)


def naive(folder: Path, prompt: list[int], count: int) -> list[int]:
    """No cache: every token costs a pass over all before it."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(RawSession(folder, capacity=256).forward(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def tokens_of(folder: Path, prompt: str) -> list[int]:
    with qtool_runtime.load(folder, threads=1) as model:
        return list(model.tokenizer.encode(prompt))


@each_cpu_artifact
def test_greedy_generation_is_what_a_loop_of_full_passes_gives(
    tiny_artifact: Artifacts, target: str, architecture: str
) -> None:
    folder = tiny_artifact(target, architecture, tied=False)
    found = ours(folder, PROMPT, 16, ignore_eos=True)
    assert found == naive(folder, tokens_of(folder, PROMPT), 16)
    assert len(set(found)) > 3  # a model that repeats one token would prove little


@each_cpu_artifact
def test_genai_reads_the_same_tokens_and_writes_the_same_answer(
    tiny_artifact: Artifacts, target: str, architecture: str
) -> None:
    folder = tiny_artifact(target, architecture, tied=False)
    prompt, answer = greedy(folder, PROMPT, 24)
    assert prompt == tokens_of(folder, PROMPT)
    assert answer == ours(folder, PROMPT, 24)
    assert len(set(answer)) > 3


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_genai_alone_answers_a_conversation_with_nano_as_ours_does(tmp_path: Path, target: str) -> None:
    """Every CPU profile that ships, those for Arm too: their artifacts run on any processor."""
    folder = qtool.build(target=target, output=tmp_path / "nano").path
    with qtool_runtime.load(folder, threads=1) as model:
        for question in ("Turn on the kitchen light", "What is 7 + 5?"):
            prompt = model.chat_template.render([{"role": "user", "content": question}])
            stream = model.generate(prompt, max_tokens=60)
            stream.read()
            answer = list(stream.token_ids)
            assert greedy(folder, prompt, 60) == (model.tokenizer.encode(prompt), answer)
            assert len(set(answer)) > 10


@each_cpu_artifact
def test_answers_do_not_depend_on_the_engine(
    tiny_artifact: Artifacts, target: str, architecture: str
) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")
    folder = tiny_artifact(target, architecture, tied=False)
    assert ours(folder, PROMPT, 60, engine="genai") == ours(folder, PROMPT, 60)


def test_conversations_with_nano_do_not_depend_on_the_engine(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")
    folder = qtool.build(target="x64-int4", output=tmp_path / "nano").path

    def converse(engine: str) -> list[Any]:
        found: list[Any] = []
        with qtool_runtime.load(folder, threads=1, engine=engine) as model:
            for question in ("Turn on the kitchen light", "What is 7 + 5?", "Set a timer for 5 minutes"):
                for options in ({"temperature": 0}, {"temperature": 0.7, "seed": 3, "candidates": 2}):
                    stream = model.chat(
                        [{"role": "user", "content": question}], max_tokens=120, thinking_budget=20, **options
                    )
                    for answer in stream.candidates:
                        answer.read()
                        found.append((answer.token_ids, answer.tool_calls, answer.stop_reason))
        return found

    assert converse("genai") == converse("onnxruntime")


@pytest.mark.parametrize("target", ["cuda-int4", "cuda-fp16", "directml-int4", "web-int4"])
def test_artifacts_for_other_providers_run_on_the_cpu_when_asked_to(
    tiny_artifact: Artifacts, target: str
) -> None:
    folder = tiny_artifact(target, "qwen3", tied=False)
    with qtool_runtime.load(folder, threads=1, provider="cpu") as model:
        prompt = list(model.tokenizer.encode(PROMPT))
    found = ours(folder, PROMPT, 8, ignore_eos=True, provider="cpu")
    assert found == naive(folder, prompt, 8)


def test_a_prompt_longer_than_a_chunk_is_read_in_chunks(tmp_path: Path) -> None:
    """The runtime reads at most some hundred tokens at once; the tiny model's maximum is raised for that."""
    source = write_tiny_checkpoint(tmp_path / "m", architecture="qwen3", max_position_embeddings=1024).folder
    folder = qtool.build(source, target="x64-fp32", output=tmp_path / "out").path
    tokens = np.random.default_rng(0).integers(0, 290, 700)
    with qtool_runtime.load(folder, threads=1) as model:
        found = model.new_session().forward(tokens).copy()
    expected = RawSession(folder, capacity=1024).forward(tokens.tolist())
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
@pytest.mark.parametrize("target", ["x64-int4", "x64-fp32"])
def test_an_int8_cache_agrees_with_full_passes_and_with_genai(
    tiny_checkpoint: Checkpoints, tmp_path: Path, target: str, architecture: str
) -> None:
    """The operator attends to quantized values only, so that reading a text in one piece is no exception."""
    source = tiny_checkpoint(architecture, tied=False).folder
    folder = qtool.build(source, target=target, kv_cache="int8", output=tmp_path / "out").path
    found = ours(folder, PROMPT, 16, ignore_eos=True)
    assert found == naive(folder, tokens_of(folder, PROMPT), 16)
    assert len(set(found)) > 3
    prompt, answer = greedy(folder, PROMPT, 24)
    assert (prompt, answer) == (tokens_of(folder, PROMPT), ours(folder, PROMPT, 24))
