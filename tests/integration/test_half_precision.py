"""Graphs for GPUs, in float16, on the CPU: they load there, and predict what float32 predicts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import qtool
import qtool_targets
from qtool.evaluate.text import evaluation_tokens, nano_text, own_text
from qtool.plain_text import PlainText
from qtool_runtime.text import Tokenizer
from support.half import mean_divergence, write_float32_twin
from support.places import real_model
from support.raw_session import RawSession
from support.tolerances import TOLERANCES

NAMES = qtool_targets.names()
HALF = [name for name in NAMES if qtool_targets.load(name).precision.activations == "float16"]
KL = TOLERANCES["float16_kl"]


def text_ids(folder: Path, text: PlainText, count: int) -> list[int]:
    ids = evaluation_tokens(text, Tokenizer.from_file(folder / "tokenizer.json"), count)
    return [int(token) for token in ids]


def logits(folder: Path, ids: list[int]) -> np.ndarray:
    return RawSession(folder, capacity=len(ids)).forward(ids, rows=len(ids))


@pytest.mark.parametrize("name", HALF)
def test_the_embedded_model_predicts_the_same(tmp_path: Path, name: str) -> None:
    half = qtool.build(target=name, output=tmp_path / name).path
    twin = write_float32_twin(half, tmp_path / "twin")
    ids = text_ids(half, nano_text(), 128)
    expected, found = logits(twin, ids), logits(half, ids)
    assert found.dtype == np.float16
    divergence = mean_divergence(expected, found)
    print(f"\n{name}: mean KL divergence of float16 from float32: {divergence:.2g}")
    assert divergence < KL["nano"]
    assert (expected.argmax(-1) == found.argmax(-1)).mean() > 0.97
    assert mean_divergence(expected, expected[::-1]) > 1  # the comparison can fail


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cuda-int4", "directml-fp16"])
def test_a_real_model_predicts_the_same(tmp_path: Path, name: str) -> None:
    model = real_model("qwen2.5-coder-0.5b")
    if model is None:
        pytest.skip("no real checkpoint (QTOOL_REAL_MODELS)")
    half = qtool.build(model, target=name, output=tmp_path / name).path
    ids = text_ids(half, own_text(), 64)
    found = logits(half, ids)
    expected = logits(write_float32_twin(half, tmp_path / "twin"), ids)
    divergence = mean_divergence(expected, found)
    print(f"\n{name}: mean KL divergence of float16 from float32: {divergence:.2g}")
    assert divergence < KL["real"]
    assert mean_divergence(expected, expected[::-1]) > 1
    for folder in (half, tmp_path / "twin"):  # gigabytes that nobody needs any more
        shutil.rmtree(folder)
