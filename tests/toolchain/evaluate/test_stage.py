"""Builds that are measured, and builds that fail because of what was measured."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qtool
import qtool_runtime
import qtool_targets
from qtool.artifact.verify import verify
from qtool.errors import GateError, GenerationError, IncompatibleRuntimeError, SourceError
from qtool.evaluate import stage
from qtool.evaluate.evaluation import evaluate
from qtool.jobs import Evaluation, plan_jobs
from qtool.pipeline import run_jobs
from qtool.plain_text import plain_text
from qtool.quantize import storage
from qtool.quantize.rtn import Quantized, quantize
from qtool_runtime import manifest
from qtool_runtime.onnx_engine import OnnxEngine, open_onnxruntime
from qtool_targets import Gates
from support.fixtures import Checkpoints

FEW = Evaluation(tokens=200)


@pytest.fixture
def source(tiny_checkpoint: Checkpoints) -> Path:
    return tiny_checkpoint("qwen3").folder


def test_the_manifest_has_what_eval_measures(source: Path, tmp_path: Path) -> None:
    built = qtool.build(source, target="x64-int4", output=tmp_path / "out", evaluation=FEW)
    quality = built.manifest.quality
    assert quality is not None
    assert manifest.read(built.path).quality == quality
    measured = evaluate([built.path], source, tokens=200)
    (artifact,) = measured.artifacts
    assert quality.kl_mean == pytest.approx(artifact.kl.mean, rel=1e-4)
    assert quality.kl_standard_error == pytest.approx(artifact.kl.standard_error, rel=1e-4)
    assert quality.top1_agreement == pytest.approx(artifact.top1_agreement)
    assert quality.perplexity == pytest.approx(artifact.perplexity, rel=1e-4)
    assert quality.source_perplexity == pytest.approx(measured.reference_perplexity, rel=1e-4)
    assert (quality.tokens, quality.window, quality.provider) == (200, 256, "cpu")
    assert quality.text_sha256 == measured.text_sha256


def test_measuring_changes_nothing_but_the_figures(source: Path, tmp_path: Path) -> None:
    plain = qtool.build(source, target="x64-int8", output=tmp_path / "plain")
    measured = qtool.build(source, target="x64-int8", output=tmp_path / "measured", evaluation=FEW)
    assert plain.manifest.quality is None
    assert replace(measured.manifest, quality=None) == plain.manifest
    assert verify(measured.path).problems == ()
    qtool_runtime.load(measured.path, verify=True).close()


def test_artifacts_are_in_memory_one_at_a_time(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every engine is watched until nothing refers to it any more."""
    alive: list[weakref.ref[OnnxEngine]] = []
    together: list[int] = []

    def opened(*arguments: Any) -> OnnxEngine:
        engine = open_onnxruntime(*arguments)
        alive.append(weakref.ref(engine))
        together.append(sum(reference() is not None for reference in alive))
        return engine

    monkeypatch.setattr(stage, "open_onnxruntime", opened)
    seen: list[tuple[int, int]] = []
    jobs = plan_jobs(source, ["x64-int4", "x64-int8", "arm64-int4"], output=tmp_path, evaluation=FEW)
    artifacts = run_jobs(
        jobs, progress=lambda name, done, total: seen.append((done, total)) if name == "evaluate" else None
    )
    assert together == [1, 1, 1]
    assert seen == sorted(seen) and seen[-1] == (600, 600)
    same, _, again = (artifact.manifest.quality for artifact in artifacts)
    assert same == again


def test_gates_that_are_passed_are_in_the_manifest(source: Path, tmp_path: Path) -> None:
    gates = Gates(max_kl=1, min_top1=0.1, max_size_mb=5)
    built = qtool.build(source, target="x64-int8", output=tmp_path / "out", gates=gates, evaluation=FEW)
    assert built.manifest.target["gates"] == {"max_kl": 1, "min_top1": 0.1, "max_size_mb": 5}
    assert built.manifest.quality is not None


def test_a_gate_of_the_target_file_is_held(source: Path, tmp_path: Path) -> None:
    target = qtool_targets.load("x64-int4")
    target = replace(target, gates=Gates(max_kl=1e-6))
    with pytest.raises(GateError, match=r"the mean KL divergence is .*, the gate is 1e-06"):
        qtool.build(source, target=target, output=tmp_path / "out")
    loose = Gates(max_kl=50)
    assert qtool.build(source, target=target, output=tmp_path / "out", gates=loose).manifest.quality


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (Gates(max_kl=1e-5), "the mean KL divergence is "),
        (Gates(min_top1=1.0), "top-1 agreement is "),
        (Gates(max_size_mb=0.01), "the artifact has "),
    ],
)
def test_a_missed_gate_leaves_nothing_behind(
    gates: Gates, message: str, source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "out"
    with pytest.raises(GateError, match=message) as caught:
        qtool.build(source, target="x64-int4", output=output, gates=gates, evaluation=FEW)
    assert caught.value.exit_code == 14
    assert list(tmp_path.iterdir()) == []


def test_a_missed_gate_keeps_what_was_there(source: Path, tmp_path: Path) -> None:
    old = qtool.build(source, target="x64-int8", output=tmp_path / "out").manifest
    with pytest.raises(GateError):
        qtool.build(
            source, target="x64-int4", output=tmp_path / "out", force=True, gates=Gates(max_size_mb=0.01)
        )
    assert manifest.read(tmp_path / "out") == old
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_damaged_matrix_fails_the_gate(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = Gates(max_kl=0.05)
    qtool.build(source, target="x64-int8", output=tmp_path / "good", gates=gates, evaluation=FEW)

    def damaged(rows: Any, *arguments: Any) -> Quantized:
        q, scale, zero_point = quantize(rows, *arguments)
        # One matrix of the first layer, recognized by its shape, has a wrong scale in a quarter of its rows.
        if rows.shape[1] == 128:
            scale[::4] *= np.float32(8)
        return Quantized(q, scale, zero_point)

    monkeypatch.setattr(storage.rtn, "quantize", damaged)
    with pytest.raises(GateError, match="the mean KL divergence is "):
        qtool.build(source, target="x64-int8", output=tmp_path / "bad", gates=gates, evaluation=FEW)


def test_what_cannot_be_small_enough_is_refused_before_any_work(tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(
        GateError, match=r"x64-fp32: the artifact is planned to have 7\.\d+ MB, the gate is 3 MB"
    ):
        qtool.build(
            target="x64-fp32",
            output=tmp_path / "out",
            gates=Gates(max_size_mb=3),
            progress=lambda stage, done, total: stages.append(stage),
        )
    assert (stages, list(tmp_path.iterdir())) == ([], [])


class TestWhatWouldPass:
    def test_targets_with_more_bits_and_their_sizes(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(GateError) as caught:
            qtool.build(
                source, target="x64-int4", output=tmp_path / "out", gates=Gates(max_kl=1e-5), evaluation=FEW
            )
        assert "Try the target x64-int8 (8 bits, " in caught.value.hint
        assert "or x64-fp32 (32 bits, " in caught.value.hint

    @pytest.fixture
    def sizes(self, source: Path, tmp_path: Path) -> tuple[int, int]:
        """Bytes in 4 and in 8 bits."""
        int4, int8 = (
            qtool.build(source, target=target, output=tmp_path / target).size
            for target in ("x64-int4", "x64-int8")
        )
        return int4, int8

    def test_smaller_targets(self, source: Path, tmp_path: Path, sizes: tuple[int, int]) -> None:
        with pytest.raises(GateError) as caught:
            gates = Gates(max_size_mb=sum(sizes) / 2e6)
            qtool.build(source, target="x64-int8", output=tmp_path / "out", gates=gates)
        assert caught.value.hint.startswith("Try the target x64-int4 (4 bits, ")

    def test_none(self, source: Path, tmp_path: Path, sizes: tuple[int, int]) -> None:
        gates = Gates(max_kl=1e-9, max_size_mb=sizes[0] * 1.01 / 1e6)
        with pytest.raises(GateError) as caught:
            qtool.build(source, target="x64-int4", output=tmp_path / "out", gates=gates, evaluation=FEW)
        expected = "No other target for its provider has more bits within the gate of size; "
        assert caught.value.hint.startswith(expected)

    def test_what_was_measured_in_the_same_run(self, source: Path, tmp_path: Path) -> None:
        jobs = plan_jobs(
            source,
            ["x64-int4", "x64-int8"],
            output=tmp_path / "all",
            gates=Gates(max_kl=0.01),
            evaluation=FEW,
        )
        with pytest.raises(GateError, match="target x64-int4, ") as caught:
            run_jobs(jobs)
        assert "Try the target x64-int8 (KL 0.00" in caught.value.hint
        assert ", measured)" in caught.value.hint
        assert list(tmp_path.iterdir()) == []  # all artifacts of a run, or none


class TestRefusedBeforeAnyWork:
    def test_a_provider_that_is_not_here(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(IncompatibleRuntimeError, match=r"target cuda-int4 cannot be compared") as caught:
            qtool.build(source, target="cuda-int4", output=tmp_path / "out", evaluation=FEW)
        assert "qtool eval" in caught.value.hint
        assert list(tmp_path.iterdir()) == []

    def test_too_few_tokens(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(GenerationError, match="tokens is 9; valid: counts from 64"):
            qtool.build(source, target="x64-int4", output=tmp_path / "out", evaluation=Evaluation(tokens=9))

    def test_a_text_that_is_too_short(self, source: Path, tmp_path: Path) -> None:
        short = Evaluation(plain_text("short.txt", b"hello"))
        stages: list[str] = []
        with pytest.raises(SourceError, match=r"short\.txt is too short"):
            qtool.build(
                source,
                target="x64-int4",
                output=tmp_path / "out",
                evaluation=short,
                progress=lambda stage, done, total: stages.append(stage),
            )
        assert stages == []
