"""An artifact of the `optimum` exporter computes what the native one does, and what transformers does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import qtool
import qtool_runtime
from support.fixtures import Artifacts, Checkpoints
from support.raw_session import distance
from support.tiny import write_tiny_checkpoint
from support.tiny_gguf import write_tiny_gguf
from support.tolerances import TOLERANCES

pytest.importorskip("optimum.exporters.onnx", reason="the exporter needs the extra 'optimum'")

TARGET = "x64-fp32"
FLOAT32 = 1e-4
"""Largest distance between the logits of two float32 implementations; measured 6e-7."""
STEPS = [70, 1, 1, 18]
"""Tokens per call: more than one prefill chunk, single tokens, some more. The traced length is 16."""


def prompt(length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(1).integers(0, 300, length)]


def logits_of(folder: Path, provider: str | None = None) -> npt.NDArray[np.float32]:
    """Returns logits of every position, computed in `STEPS` with the runtime's cache."""
    tokens, rows, start = prompt(sum(STEPS)), [], 0
    with qtool_runtime.load(folder, threads=1, provider=provider) as model:
        session = model.new_session()
        for count in STEPS:
            rows.append(session.forward(tokens[start : start + count], rows=count).copy())
            start += count
    return np.concatenate(rows)


def test_logits_are_the_native_exporters(
    model: tuple[str, bool], tiny_artifact: Artifacts, optimum_artifact: Artifacts
) -> None:
    native = logits_of(tiny_artifact(TARGET, model[0], tied=model[1]))
    assert distance(logits_of(optimum_artifact(TARGET, model[0], tied=model[1])), native) < FLOAT32


def test_logits_are_those_of_transformers(
    model: tuple[str, bool], tiny_checkpoint: Checkpoints, optimum_artifact: Artifacts
) -> None:
    """Transformers reads the checkpoint itself: the placeholders got the right weights."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(model[0], tied=model[1]).folder
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(torch.tensor([prompt(sum(STEPS))])).logits[0].numpy()
    assert distance(logits_of(optimum_artifact(TARGET, model[0], tied=model[1])), expected) < FLOAT32


def test_greedy_tokens_are_the_native_exporters(
    model: tuple[str, bool], tiny_artifact: Artifacts, optimum_artifact: Artifacts
) -> None:
    answers = []
    for artifact in (tiny_artifact, optimum_artifact):
        with qtool_runtime.load(artifact(TARGET, model[0], tied=model[1]), threads=1) as loaded:
            stream = loaded.generate(prompt(9), max_tokens=64, temperature=0, ignore_eos=True)
            stream.read()
            answers.append(stream.token_ids)
    assert len(answers[0]) == 64
    assert answers[0] == answers[1]


@pytest.mark.parametrize("target", ["x64-int4", "x64-int8"])
def test_quantized_logits_are_the_native_exporters(
    target: str, tiny_artifact: Artifacts, optimum_artifact: Artifacts
) -> None:
    native = logits_of(tiny_artifact(target, "qwen3"))
    tolerance = TOLERANCES[target.removeprefix("x64-")]["cached"]
    assert distance(logits_of(optimum_artifact(target, "qwen3")), native) < tolerance


@pytest.mark.parametrize("target", ["cuda-fp16", "cuda-int4", "directml-int4"])
def test_float16_graphs_compute_the_same(
    target: str, tiny_artifact: Artifacts, optimum_artifact: Artifacts
) -> None:
    native = logits_of(tiny_artifact(target, "qwen3"), "cpu")
    found = logits_of(optimum_artifact(target, "qwen3"), "cpu")
    assert distance(found, native) < TOLERANCES["float16"]["reference"]


def test_heads_wider_than_hidden_by_heads(tmp_path: Path) -> None:
    """Qwen2 with a head_dim of its own, more layers, a single key-value head."""
    write_tiny_checkpoint(
        tmp_path / "source", head_dim=32, num_hidden_layers=3, num_key_value_heads=1, rms_norm_eps=1e-5
    )
    folders = [
        qtool.build(tmp_path / "source", target=TARGET, exporter=name, output=tmp_path / name).path
        for name in ("native", "optimum")
    ]
    assert distance(*map(logits_of, folders)) < FLOAT32


def test_gguf_source(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", architecture="qwen3").path
    folders = [
        qtool.build(source, target=TARGET, exporter=name, output=tmp_path / name).path
        for name in ("native", "optimum")
    ]
    assert distance(*map(logits_of, folders)) < FLOAT32
