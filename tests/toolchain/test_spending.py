"""Artifacts within a budget: how large they get, what is chosen, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qtool
import qtool_runtime
from qtool.artifact.verify import verify
from qtool.calibration.text import read_calibration_text
from qtool.errors import GateError, QtoolError
from qtool.jobs import plan_jobs
from qtool.pipeline import Artifact
from qtool_targets import Gates
from support.kernels import require_2_bits


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginning of the text that ships: enough for a small model."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(read_calibration_text(None).text[:9000], encoding="utf-8")
    return path


def build(output: Path, text: Path, **options: Any) -> Artifact:
    return qtool.build(
        target="x64-int4", recipe="best", calibration=text, output=output, force=True, **options
    )


def test_artifacts_are_within_their_size_and_use_it(text: Path, tmp_path: Path) -> None:
    """The embedded model has 1.95 MB with the target's own formats."""
    require_2_bits()
    losses = []
    for most in (1.75, 2.1, 2.5):
        built = build(tmp_path / "out", text, gates=Gates(max_size_mb=most))
        assert 0.97 * most * 1e6 < built.size <= most * 1e6
        spent = built.manifest.spent_bits
        assert spent is not None
        assert spent.bytes == sum(group.bytes for group in built.manifest.quantization) <= spent.budget
        bits = {group.bits for group in built.manifest.quantization}
        assert len(bits) > 1
        assert verify(built.path).problems == ()
        losses.append(quality(built))
    assert losses[0] > losses[1] > losses[2]


def quality(built: Artifact) -> float:
    """Runs the artifact, whose formats may need a later onnxruntime than the oldest supported."""
    from qtool.evaluate.evaluation import evaluate

    return evaluate([built.path], None, tokens=512).artifacts[0].kl.mean


def test_it_is_better_than_uniform_formats_of_the_same_size(text: Path, tmp_path: Path) -> None:
    require_2_bits()
    uniform = qtool.build(target="x64-int4", recipe="balanced", calibration=text, output=tmp_path / "uniform")
    mixed = build(tmp_path / "mixed", text, gates=Gates(max_size_mb=uniform.size / 1e6))
    assert mixed.size <= uniform.size
    assert quality(mixed) < quality(uniform)


def test_bits_a_weight_bound_what_matrices_take(text: Path, tmp_path: Path) -> None:
    built = build(tmp_path / "out", text, target_bpw=4.75)
    spent = built.manifest.spent_bits
    assert spent is not None
    assert 4.5 < 8 * spent.bytes / spent.weights <= 4.75
    tensors = {name for group in built.manifest.quantization for name in group.tensors}
    assert len(tensors) == 29  # seven in each of four layers, and the table


def test_the_plan_is_that_of_the_budget(tmp_path: Path) -> None:
    for most in (1.75, 2.5):
        (job,) = plan_jobs(None, ["x64-int4"], recipe="best", gates=Gates(max_size_mb=most))
        assert 0.96 * most * 1e6 < job.plan.artifact <= most * 1e6


def test_a_budget_for_everything_needs_no_measurement(tmp_path: Path) -> None:
    (job,) = plan_jobs(None, ["x64-int8"], recipe="best")
    assert job.budget is not None
    assert not job.budget.is_scarce
    assert {scheme.bits for scheme in job.formats.values()} == {8}
    assert job.calibration is None


def test_a_gate_of_size_is_only_a_gate_for_other_recipes(tmp_path: Path) -> None:
    (job,) = plan_jobs(None, ["x64-int4"], recipe="balanced", gates=Gates(max_size_mb=100))
    (without,) = plan_jobs(None, ["x64-int4"], recipe="balanced")
    assert job.budget is None
    assert job.plan == without.plan


def test_2_bits_where_little_is_possible(text: Path, tmp_path: Path) -> None:
    require_2_bits()
    document = build(tmp_path / "out", text, target_bpw=3.6).manifest
    assert document.graph.minimum_onnxruntime == "1.28"
    assert 2 in {group.bits for group in document.quantization}
    with qtool_runtime.load(tmp_path / "out") as model:
        assert model.generate("The", max_tokens=4).read()


@pytest.mark.parametrize("target", ["directml-int4", "cuda-int4", "web-int4"])
def test_what_other_providers_can_multiply_with(target: str, text: Path, tmp_path: Path) -> None:
    """DirectML has no lookup of integers; it and CUDA need zero points, also with 8 bits."""
    built = qtool.build(target=target, recipe="best", calibration=text, output=tmp_path / "out")
    groups = built.manifest.quantization
    assert {group.bits for group in groups if group.group == "mlp"} <= {4, 8}
    assert {group.symmetric for group in groups if group.bits <= 8} == {target == "web-int4"}
    assert (16 in {group.bits for group in groups}) == (target == "directml-int4")


class TestRefusals:
    """All of them before the text, or a weight, is read."""

    def test_a_size_that_is_not_possible(self) -> None:
        with pytest.raises(GateError, match=r"an artifact of 0\.5 MB is smaller than is possible") as caught:
            plan_jobs(None, ["x64-int4"], recipe="best", gates=Gates(max_size_mb=0.5))
        least = float(caught.value.hint.split("Ask for ")[1].split(" MB")[0])
        assert plan_jobs(None, ["x64-int4"], recipe="best", gates=Gates(max_size_mb=least))
        assert caught.value.exit_code == 14

    def test_bits_that_are_not_possible(self) -> None:
        with pytest.raises(GateError, match="2 bits a weight are less than is possible") as caught:
            plan_jobs(None, ["x64-int4"], recipe="best", target_bpw=2)
        least = float(caught.value.hint.split("Ask for ")[1].split(" or")[0])
        assert plan_jobs(None, ["x64-int4"], recipe="best", target_bpw=least)

    @pytest.mark.parametrize(
        ("target", "recipe", "message"),
        [
            ("x64-int4", "balanced", "4.6 bits a weight would not be used: the recipe 'balanced' stores"),
            ("x64-fp32", "best", "the recipe best would change nothing for the target x64-fp32"),
        ],
    )
    def test_bits_that_nothing_spends(self, target: str, recipe: str, message: str) -> None:
        with pytest.raises(QtoolError, match=message):
            plan_jobs(None, [target], recipe=recipe, target_bpw=4.6)
