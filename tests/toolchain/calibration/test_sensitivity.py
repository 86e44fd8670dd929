"""What rounding one matrix costs: against models in which only this matrix was rounded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qtool.calibration.sensitivity import measure_losses
from qtool.checkpoint import Checkpoint, Weight, open_checkpoint
from qtool.checkpoint.layout import EMBEDDING, LM_HEAD
from qtool.quantize import rtn
from qtool.quantize.choices import Losses
from qtool.quantize.schemes import Scheme
from support import numpy_decoder
from support.fixtures import Checkpoints

TOKENS = np.random.default_rng(7).integers(0, 300, (3, 60))
PROBE, FINER, COARSER = Scheme(4, 64), Scheme(8, 32, symmetric=True), Scheme(2, 64)
MATRICES = ["model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.v_proj.weight"]


def measure(checkpoint: Checkpoint, names: list[str], threads: int = 2) -> Losses:
    options = dict.fromkeys(names, (COARSER, PROBE, FINER))
    return measure_losses(checkpoint, options, TOKENS, threads=threads, progress=lambda done, total: None)


@pytest.mark.parametrize(
    ("architecture", "tied", "tables"),
    [
        ("qwen2", True, [EMBEDDING]),
        ("qwen2", True, [EMBEDDING, LM_HEAD]),
        ("qwen3", False, [EMBEDDING, LM_HEAD]),
    ],
    ids=["tied", "tied, stored twice", "untied"],
)
def test_it_is_the_divergence_of_a_model_with_that_matrix_rounded(
    architecture: str, tied: bool, tables: list[str], tiny_checkpoint: Checkpoints
) -> None:
    """Computed anew by another implementation of the whole decoder."""
    source = tiny_checkpoint(architecture, tied=tied)
    names = [*MATRICES, *tables]
    losses = measure(open_checkpoint(str(source.folder)), names)
    windows = TOKENS[[0, -1]]

    def log_probabilities(tensors: dict[str, np.ndarray]) -> np.ndarray:
        logits = np.stack([numpy_decoder.logits(source.config, tensors, window) for window in windows])
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

    tensors = (
        source.tensors if tables == [EMBEDDING] else {LM_HEAD: source.tensors[EMBEDDING], **source.tensors}
    )
    exact = log_probabilities(tensors)
    for name in names:
        rounded = rtn.dequantize(rtn.quantize(tensors[name], PROBE), PROBE)
        found = log_probabilities({**tensors, name: rounded})
        expected = (np.exp(exact) * (exact - found)).sum(axis=-1).mean()
        # The cost of rounding activations comes on top.
        assert losses[name][PROBE] == pytest.approx(expected, rel=0.1)


def test_other_formats_cost_more_or_less_by_their_errors(tiny_checkpoint: Checkpoints) -> None:
    losses = measure(open_checkpoint(str(tiny_checkpoint("qwen2").folder)), [*MATRICES, EMBEDDING])
    for found in losses.values():
        assert found[COARSER] > 5 * found[PROBE]
        assert 0 < found[FINER] < 0.1 * found[PROBE]


def test_with_8_bits_the_size_of_groups_matters_by_what_a_matrix_reads(tiny_checkpoint: Checkpoints) -> None:
    """The weights cost next to nothing then. Up's input has smaller outliers than v's and down's."""
    formats = (Scheme(4, 32), FINER, Scheme(8, 64, symmetric=True))
    names = [f"model.layers.1.{name}.weight" for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.v_proj")]
    checkpoint = open_checkpoint(str(tiny_checkpoint("qwen2").folder))
    losses = measure_losses(
        checkpoint, dict.fromkeys(names, formats), TOKENS, threads=1, progress=lambda done, total: None
    )
    usual, fine, coarse = formats
    up, *others = [(losses[name][coarse] - losses[name][fine]) / losses[name][usual] for name in names]
    assert 0 < up < 0.7 * min(others)


def test_it_does_not_depend_on_threads(tiny_checkpoint: Checkpoints) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint("qwen2").folder))
    assert (
        measure(checkpoint, MATRICES, 1)
        == measure(checkpoint, MATRICES, 2)
        == measure(checkpoint, MATRICES, 3)
    )


def test_weights_that_lie_on_the_grid_are_left_on_it(tiny_checkpoint: Checkpoints) -> None:
    """A source that was quantized before: its own format costs nothing, and others are still in order."""
    checkpoint = open_checkpoint(str(tiny_checkpoint("qwen2").folder))
    name = MATRICES[0]
    values = checkpoint.weights[name].read_all()
    values = rtn.dequantize(rtn.quantize(values, PROBE), PROBE)
    weight = Weight(name, values.shape, "F32", lambda start, stop: values[start:stop])
    losses = measure(replace(checkpoint, weights={**checkpoint.weights, name: weight}), [name])[name]
    assert losses[PROBE] == pytest.approx(0, abs=1e-6)
    assert losses[COARSER] > 1e-3
