"""An int8 KV cache: what its scales are, that builds agree on them, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qtool
import qtool_targets
from qtool.artifact.verify import verify
from qtool.calibration.kv_cache import largest_at_any_position
from qtool.calibration.text import read_calibration_text
from qtool.errors import IncompatibleRuntimeError, MissingExtraError, QtoolError, SourceError
from qtool.jobs import plan_jobs
from qtool_runtime import manifest
from qtool_targets import TargetError
from support.fixtures import Artifacts, Checkpoints
from support.kernels import require_int8_kv_cache

TOKENS = np.random.default_rng(3).integers(0, 300, 60)


@pytest.fixture(scope="module")
def int8(tiny_checkpoint: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with float32 weights, so that nothing but the cache is rounded."""
    require_int8_kv_cache()
    output = tmp_path_factory.mktemp("int8") / "out"
    return qtool.build(tiny_checkpoint().folder, target="x64-fp32", kv_cache="int8", output=output).path


def cache_after(folder: Path, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Reads tokens in one run; returns the cached tensors (heads, tokens, head_dim) by output name."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    cache = manifest.read(folder).kv_cache
    past = np.zeros((1, cache.num_key_value_heads, 0, cache.head_dim), cache.dtype)
    feeds: dict[str, Any] = {"input_ids": tokens[None], "attention_mask": np.ones((1, len(tokens)), np.int64)}
    feeds |= {value.name: past for value in session.get_inputs() if value.name.startswith("past")}
    names = [value.name for value in session.get_outputs() if value.name.startswith("present")]
    return {name: value[0] for name, value in zip(names, session.run(names, feeds), strict=True)}


def scales_of(folder: Path) -> dict[str, np.ndarray]:
    """Reads the scales (heads, 1, head_dim) by the name of the graph's output."""
    import onnx

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    return {
        tensor.name.removesuffix(".scale"): onnx.numpy_helper.to_array(tensor)[0]
        for tensor in model.graph.initializer
        if tensor.name.startswith("present.")
    }


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


class TestLargestAtAnyPosition:
    CONTEXT, HEAD_DIM = 3000, 8

    @settings(deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        theta=st.sampled_from([10_000.0, 1_000_000.0]),
        tokens=st.integers(1, 20),
    )
    def test_is_the_largest_of_all_positions(self, seed: int, theta: float, tokens: int) -> None:
        """Against rotating every key to every position."""
        keys = np.random.default_rng(seed).normal(0, 1, (2, tokens, self.HEAD_DIM))
        pairs = keys[..., :4] + 1j * keys[..., 4:]
        angle = np.arange(self.CONTEXT)[:, None] * theta ** -(np.arange(0, self.HEAD_DIM, 2) / self.HEAD_DIM)
        everywhere = pairs[:, :, None] * np.exp(1j * angle)
        expected = np.concatenate([abs(everywhere.real), abs(everywhere.imag)], axis=-1).max(axis=(1, 2))
        here = pairs * np.exp(1j * angle[:tokens])
        rotated = np.concatenate([here.real, here.imag], axis=-1)
        found = largest_at_any_position(rotated, theta, self.CONTEXT)
        assert found.shape == (2, self.HEAD_DIM)
        assert (found >= expected - 1e-9).all()
        np.testing.assert_allclose(found, expected, rtol=1e-3)  # some position comes near every peak

    def test_one_position_is_what_is_there(self) -> None:
        keys = np.random.default_rng(0).normal(0, 1, (3, 1, 16))
        np.testing.assert_allclose(largest_at_any_position(keys, 1e4, 1), np.abs(keys[:, 0]))


def test_the_first_layers_cache_is_the_float_one_to_half_a_step(int8: Path, tiny_artifact: Artifacts) -> None:
    """Keys and values of the first layer depend on no other cached value."""
    exact, found, scales = (
        cache_after(tiny_artifact("x64-fp32"), TOKENS),
        cache_after(int8, TOKENS),
        scales_of(int8),
    )
    for name in ("present.0.key", "present.0.value"):
        assert found[name].dtype == np.int8
        assert np.ptp(found[name].astype(int)) > 100  # the range is used
        inside = np.abs(exact[name]) <= 127 * scales[name]
        assert inside.mean() > 0.999
        difference = np.abs(found[name] * scales[name] - exact[name]) / scales[name]
        assert difference[inside].max() <= 0.5001


def test_scales_do_not_depend_on_threads(int8: Path, tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    for threads in (1, 3, 8):
        built = qtool.build(
            tiny_checkpoint().folder,
            target="x64-fp32",
            kv_cache="int8",
            output=tmp_path / str(threads),
            threads=threads,
        )
        assert digests(built.path) == digests(int8)


@pytest.mark.filterwarnings("ignore::qtool.calibration.mix.CalibrationWarning")
def test_another_text_gives_other_scales_and_is_recorded(
    int8: Path, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("0123456789 " * 100)
    built = qtool.build(
        tiny_checkpoint().folder,
        target="x64-fp32",
        kv_cache="int8",
        calibration=text,
        output=tmp_path / "out",
    )
    calibration = built.manifest.calibration
    assert calibration is not None
    assert calibration.sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
    assert 256 <= calibration.tokens <= 1100
    default = manifest.read(int8).calibration
    assert default is not None
    assert default.sha256 == read_calibration_text(None).sha256
    assert (scales_of(built.path)["present.1.key"] != scales_of(int8)["present.1.key"]).any()


def test_the_artifact_is_whole_and_says_what_it_is(int8: Path, tiny_artifact: Artifacts) -> None:
    assert verify(int8).problems == ()
    document, other = manifest.read(int8), manifest.read(tiny_artifact("x64-fp32"))
    assert document.kv_cache.dtype == "int8"
    assert document.kv_cache.bytes_per_token * 4 == other.kv_cache.bytes_per_token
    assert document.graph.minimum_onnxruntime == "1.27"
    assert document.tools["onnxruntime"] == onnxruntime.__version__
    assert document.target["precision"]["kv_cache"] == "int8"
    assert other.calibration is None
    assert "onnxruntime" not in other.tools
    assert (int8 / "model.onnx.data").read_bytes() == (
        tiny_artifact("x64-fp32") / "model.onnx.data"
    ).read_bytes()
    assert not list(int8.glob(".*"))


def test_the_plan_knows_it(tmp_path: Path, tiny_checkpoint: Checkpoints, int8: Path) -> None:
    source = tiny_checkpoint().folder
    one, other = (plan_jobs(source, ["x64-fp32"], kv_cache=kind)[0].plan for kind in ("float32", "int8"))
    document = manifest.read(int8)
    assert other.kv_bytes_per_token == document.kv_cache.bytes_per_token
    assert other.device.kv_cache == document.memory.kv_cache
    assert one.kv_bytes_per_token == 4 * other.kv_bytes_per_token
    assert one.device.kv_cache == 4 * other.device.kv_cache
    assert other.artifact - one.artifact == 4 * other.kv_bytes_per_token  # the scales
    assert other.build_memory > one.build_memory + other.device.weights  # the model is run


class TestContradictions:
    @pytest.mark.parametrize(
        ("target", "options", "message"),
        [
            (
                "cuda-fp16",
                {"kv_cache": "int8"},
                "provider cuda is not known to compute attention over an int8",
            ),
            ("web-int4", {"kv_cache": "int8"}, "provider webgpu is not known"),
            ("x64-int4", {"kv_cache": "float16"}, "'float16' differs from activations = 'float32'"),
            ("x64-int4", {"kv_cache": "int4"}, "'int4' is not one of float32, float16, int8"),
            (
                "x64-int4",
                {"kv_cache": "int8", "exporter": "optimum"},
                "the exporter 'optimum' does not write",
            ),
        ],
    )
    def test_of_target_and_cache(
        self,
        tmp_path: Path,
        tiny_checkpoint: Checkpoints,
        target: str,
        options: dict[str, Any],
        message: str,
    ) -> None:
        with pytest.raises(TargetError, match=message):
            qtool.build(tiny_checkpoint().folder, target=target, output=tmp_path / "out", **options)
        assert list(tmp_path.iterdir()) == []

    def test_a_text_that_nothing_would_read(self, tmp_path: Path) -> None:
        with pytest.raises(QtoolError, match="would not be used: nothing is calibrated") as caught:
            plan_jobs("no/model", ["x64-int4"], calibration=tmp_path / "none.txt")
        assert "--kv-cache int8" in caught.value.hint

    def test_a_text_that_is_not_there(self, tmp_path: Path) -> None:
        """Noticed before the model is looked for."""
        with pytest.raises(SourceError, match=r"none\.txt.*No such file"):
            plan_jobs("no/model", ["x64-int4"], kv_cache="int8", calibration=tmp_path / "none.txt")


class TestWithoutOnnxruntime:
    def test_a_build_that_measures_names_the_extra(
        self, tmp_path: Path, tiny_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        source = tiny_checkpoint().folder
        with pytest.raises(MissingExtraError, match="a calibration runs the model") as caught:
            qtool.build(source, target="x64-int4", kv_cache="int8", output=tmp_path / "out")
        assert "qtool-edge[cpu]" in caught.value.hint
        assert list(tmp_path.iterdir()) == []
        qtool.build(source, target="x64-int4", output=tmp_path / "out")

    def test_an_old_one_is_refused(
        self, tmp_path: Path, tiny_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnxruntime, "__version__", "1.26.0")
        with pytest.raises(
            IncompatibleRuntimeError, match=r"1\.26\.0 is installed; the artifact needs 1\.27"
        ):
            qtool.build(tiny_checkpoint().folder, target="x64-int4", kv_cache="int8", output=tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


def test_a_target_file_can_ask_for_it(tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
    require_int8_kv_cache()
    text = (resources.files(qtool_targets) / "arm64-int8.toml").read_text("utf-8")
    file = tmp_path / "board.toml"
    file.write_text(text.replace('kv_cache = "float32"', 'kv_cache = "int8"'))
    artifact = qtool.build(tiny_checkpoint("qwen3").folder, target=file, output=tmp_path / "out")
    assert json.loads((artifact.path / "manifest.json").read_text())["kv_cache"]["dtype"] == "int8"
