"""One artifact, several ways to run it: our runtime, a naive loop of full passes, and onnxruntime-genai."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qtool
import qtool_runtime
import qtool_targets
from qtool_runtime import manifest
from support.fixtures import Artifacts, Checkpoints
from support.places import real_model
from support.raw_session import RawSession

PROMPT = "Hello world in the"
"""Each word is a token that the tiny tokenizer's merges lead to. (onnxruntime-genai takes a word that is in
the vocabulary whole, even where they do not.)"""
CPU_TARGETS = [name for name in qtool_targets.names() if qtool_targets.load(name).execution.provider == "cpu"]
each_cpu_artifact = pytest.mark.parametrize(
    ("target", "architecture"), [(target, name) for target in CPU_TARGETS for name in ("qwen2", "qwen3")]
)


@pytest.fixture(scope="module")
def genai() -> Any:
    """onnxruntime-genai. Its packages send telemetry unless they are told not to before the import."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")


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


def by_genai(genai: Any, folder: Path, prompt: str, count: int) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the answer, without the one that ends it."""
    model = genai.Model(str(folder))
    tokens = genai.Tokenizer(model).encode(prompt)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(tokens) + count)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(tokens)
    answer: list[int] = []
    while len(answer) < count and not generator.is_done():
        generator.generate_next_token()
        answer.append(int(generator.get_next_tokens()[0]))
    if answer[-1] in manifest.read(folder).generation.eos_token_ids:
        answer.pop()
    return [int(token) for token in tokens], answer


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
    tiny_artifact: Artifacts, genai: Any, target: str, architecture: str
) -> None:
    folder = tiny_artifact(target, architecture, tied=False)
    prompt, answer = by_genai(genai, folder, PROMPT, 24)
    assert prompt == tokens_of(folder, PROMPT)
    assert answer == ours(folder, PROMPT, 24)
    assert len(set(answer)) > 3


@pytest.mark.parametrize("target", ["cuda-int4", "cuda-fp16", "directml-int4", "web-int4"])
def test_artifacts_for_other_providers_run_on_the_cpu_when_asked_to(
    tiny_artifact: Artifacts, target: str
) -> None:
    folder = tiny_artifact(target, "qwen3", tied=False)
    with qtool_runtime.load(folder, threads=1, provider="cpu") as model:
        prompt = list(model.tokenizer.encode(PROMPT))
    found = ours(folder, PROMPT, 8, ignore_eos=True, provider="cpu")
    assert found == naive(folder, prompt, 8)


def test_a_prompt_longer_than_a_chunk_is_read_in_chunks(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    """The runtime reads at most some hundred tokens at once; the tiny model's maximum is raised for that."""
    from support.tiny import write_tiny_checkpoint

    source = write_tiny_checkpoint(tmp_path / "m", architecture="qwen3", max_position_embeddings=1024).folder
    folder = qtool.build(source, target="x64-fp32", output=tmp_path / "out").path
    tokens = np.random.default_rng(0).integers(0, 290, 700)
    with qtool_runtime.load(folder, threads=1) as model:
        found = model.new_session().forward(tokens).copy()
    expected = RawSession(folder, capacity=1024).forward(tokens.tolist())
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.real
@pytest.mark.slow
def test_genai_and_our_runtime_agree_on_a_real_model(genai: Any, tmp_path: Path) -> None:
    model = real_model("qwen2.5-coder-0.5b")
    if model is None:
        pytest.skip("no real checkpoint (QTOOL_REAL_MODELS)")
    folder = qtool.build(model, target="x64-int4", output=tmp_path / "real", context=512).path
    prompt = "def fibonacci(n):\n    "
    asked, answer = by_genai(genai, folder, prompt, 32)
    assert asked == tokens_of(folder, prompt)
    assert answer == ours(folder, prompt, 32)
