"""A real checkpoint: 24 layers, a large vocabulary and trained weights, through both exporters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import qtool
import qtool_runtime
from qtool.jobs import plan_jobs
from support.places import real_model

pytest.importorskip("optimum.exporters.onnx", reason="the exporter needs the extra 'optimum'")

MODEL = "qwen2.5-coder-0.5b"
TARGET = "x64-int8"
TEXT = Path(qtool_runtime.__file__).with_name("session.py")
"""A text of the kind that this model knows best."""


def log_probabilities(folder: Path, tokens: int = 300) -> npt.NDArray[np.float64]:
    """Returns the logarithm of the probability of every token after each of the text's first ones."""
    with qtool_runtime.load(folder) as model:
        ids = model.tokenizer.encode(TEXT.read_text("utf-8"))[:tokens]
        session, step = model.new_session(), 60
        parts = [session.forward(ids[at : at + step], rows=step).copy() for at in range(0, tokens, step)]
    logits = np.concatenate(parts).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))


@pytest.mark.real
@pytest.mark.slow
def test_both_exporters_agree_on_a_real_model(tmp_path: Path) -> None:
    """The integers are the same: what is left is how activations are rounded (measured 7e-4 and 99 %)."""
    source = real_model(MODEL)
    if source is None:
        pytest.skip(f"there is no {MODEL}; set QTOOL_REAL_MODELS to the folder that holds it")
    found = []
    for exporter in ("native", "optimum"):
        artifact = qtool.build(source, target=TARGET, exporter=exporter, output=tmp_path / exporter)
        (job,) = plan_jobs(source, [TARGET], exporter=exporter)
        assert abs(job.plan.artifact - artifact.size) < 0.02 * artifact.size
        found.append(log_probabilities(artifact.path))
    native, optimum = found
    divergence = (np.exp(native) * (native - optimum)).sum(axis=-1)
    assert divergence.mean() < 3e-3
    assert (native.argmax(axis=-1) == optimum.argmax(axis=-1)).mean() > 0.97
