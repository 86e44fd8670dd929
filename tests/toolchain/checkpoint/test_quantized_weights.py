"""Checkpoints that are quantized already: every value is exactly what the stored integers stand for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from qtool.checkpoint import Checkpoint, open_checkpoint
from qtool.checkpoint.layout import weight_shapes
from qtool.checkpoint.quantized_weights import QuantizedWeight
from qtool.errors import QtoolError, SourceError, UnsupportedModelError
from support.fixtures import Checkpoints
from support.quantized import QuantizedCheckpoint, Style, write_quantized_checkpoint

STYLES = [
    Style("gptq"),
    Style("gptq", bits=8, group_size=64),
    Style("gptq_v2", symmetric=False, lm_head=True),
    Style("gptq", zero_biases=True, scale_type="float32"),
    Style("awq", symmetric=False),
    Style("olive", symmetric=False, lm_head=True),
    Style("olive", bits=8),
]
UP = "model.layers.0.mlp.up_proj"

Written = Callable[..., QuantizedCheckpoint]


def style_name(style: Style) -> str:
    return f"{style.method}-{style.bits}-{'symmetric' if style.symmetric else 'asymmetric'}"


@pytest.fixture(scope="module")
def written(tiny_checkpoint: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """`written(style, "qwen3")`: an untied tiny checkpoint, quantized; read-only."""

    @cache
    def quantized(style: Style, architecture: str = "qwen2") -> QuantizedCheckpoint:
        folder = tmp_path_factory.mktemp("quantized") / "tiny"
        return write_quantized_checkpoint(folder, tiny_checkpoint(architecture, tied=False).folder, style)

    return quantized


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
@pytest.mark.parametrize("style", STYLES, ids=style_name)
def test_every_value_is_exact(style: Style, architecture: str, written: Written) -> None:
    expected = written(style, architecture)
    opened = open_checkpoint(str(expected.folder))
    assert list(opened.weights) == list(weight_shapes(opened.config))
    for name, weight in opened.weights.items():
        np.testing.assert_array_equal(weight.read_all(), expected.tensors[name])
    taken = {name for name, weight in opened.weights.items() if isinstance(weight, QuantizedWeight)}
    assert taken == {name for name in opened.weights if is_quantized(name, style)}


def is_quantized(name: str, style: Style) -> bool:
    return name.endswith("_proj.weight") or (style.lm_head and name == "lm_head.weight")


@given(style=st.sampled_from(STYLES), rows=st.sets(st.integers(0, 64), min_size=2, max_size=2).map(sorted))
def test_any_rows(style: Style, rows: list[int], written: Written) -> None:
    expected = written(style)
    start, stop = rows
    weight = open_checkpoint(str(expected.folder)).weights["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_array_equal(weight.read(start, stop), expected.tensors[weight.name][start:stop])


def changed(source: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Checkpoint:
    """Opens a copy of a checkpoint with other tensors."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(str(folder))


def test_scattered_groups_are_refused(written: Written, tmp_path: Path) -> None:
    def scatter(tensors: dict[str, Any]) -> None:
        tensors[f"{UP}.g_idx"] = tensors[f"{UP}.g_idx"][::-1].copy()

    with pytest.raises(UnsupportedModelError, match="desc_act") as caught:
        changed(written(Style("gptq")).folder, tmp_path / "m", scatter)
    assert f"{UP}.g_idx" in caught.value.message and "desc_act=False" in caught.value.hint


def test_a_checkpoint_without_the_order_of_features_has_them_in_order(
    written: Written, tmp_path: Path
) -> None:
    expected = written(Style("gptq"))
    opened = changed(expected.folder, tmp_path / "m", lambda tensors: tensors.pop(f"{UP}.g_idx"))
    name = f"{UP}.weight"
    np.testing.assert_array_equal(opened.weights[name].read_all(), expected.tensors[name])


def test_a_bias_that_is_not_zero_is_refused(written: Written, tmp_path: Path) -> None:
    def shift(tensors: dict[str, Any]) -> None:
        tensors[f"{UP}.bias"][5] = 1e-4

    with pytest.raises(UnsupportedModelError, match=r"up_proj\.bias"):
        changed(written(Style("gptq", zero_biases=True)).folder, tmp_path / "m", shift)


def test_a_zero_point_that_programs_disagree_about_is_refused(written: Written, tmp_path: Path) -> None:
    def wrap(tensors: dict[str, Any]) -> None:
        tensors[f"{UP}.qzeros"][0, 0] |= 0xF0  # the second of eight

    source = written(Style("gptq", symmetric=False)).folder
    weight = changed(source, tmp_path / "m", wrap).weights[f"{UP}.weight"]
    weight.read(2, 8)
    with pytest.raises(UnsupportedModelError, match="zero point 15"):
        weight.read(1, 2)


def test_zero_points_that_are_not_symmetric_are_refused(written: Written, tmp_path: Path) -> None:
    def shift(tensors: dict[str, Any]) -> None:
        tensors[f"{UP}.qzeros"][0, 0] ^= 1

    weight = changed(written(Style("gptq_v2")).folder, tmp_path / "m", shift).weights[f"{UP}.weight"]
    with pytest.raises(SourceError, match=r"zero points of .* not all 8"):
        weight.read_all()


def test_a_scale_that_is_not_finite_is_refused(written: Written, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[f"{UP}.scales"][0, 3] = np.inf

    weight = changed(written(Style("awq", symmetric=False)).folder, tmp_path / "m", spoil).weights[
        f"{UP}.weight"
    ]
    with pytest.raises(SourceError, match="scales"):
        weight.read_all()


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


def replace(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop(f"{UP}.qzeros"), "lacks the tensor"),
        (drop(f"{UP}.qweight"), "lacks the tensor"),
        (replace(f"{UP}.qweight", np.zeros((8, 129), np.int32)), "must be I32 of shape (8, 128)"),
        (replace(f"{UP}.scales", np.ones((2, 128), np.int32)), "is I32 of shape"),
        (replace(f"{UP}.g_idx", np.zeros(63, np.int32)), "not I32 of (64,)"),
        (replace(f"{UP}.adapter", np.zeros(63, np.float32)), "does not use"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, Any]], None], named: str, written: Written, tmp_path: Path
) -> None:
    with pytest.raises(QtoolError) as caught:
        changed(written(Style("gptq")).folder, tmp_path / "m", change)
    assert named in caught.value.message


def test_groups_that_do_not_divide_a_row_are_refused(tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
    source = tiny_checkpoint("qwen2", tied=False).folder
    folder = write_quantized_checkpoint(tmp_path / "m", source, Style("gptq")).folder
    config = (folder / "config.json").read_text().replace('"group_size": 32', '"group_size": 128')
    (folder / "config.json").write_text(config)
    with pytest.raises(UnsupportedModelError, match="128"):
        open_checkpoint(str(folder))


def test_packed_integers_without_a_configuration_are_refused(written: Written, tmp_path: Path) -> None:
    source = written(Style("gptq")).folder
    folder = tmp_path / "m"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = (folder / "config.json").read_text().replace("quantization_config", "another")
    (folder / "config.json").write_text(config)
    with pytest.raises(UnsupportedModelError, match="I32") as caught:
        open_checkpoint(str(folder))
    assert "quantization_config" in caught.value.hint
