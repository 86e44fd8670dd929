"""The plan before the work: near what the build gives, quick, and a reason to refuse."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import qtool
import qtool_targets
from qtool.errors import BudgetError, UnsupportedModelError
from qtool.jobs import plan_jobs
from qtool.pipeline import run_jobs
from qtool.plan import Plan
from qtool_targets import Target, TargetError
from support.fixtures import Checkpoints
from support.places import shared_folder
from support.sparse import write_sparse_checkpoint

SMALL = {
    "vocab_size": 16_000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip


KINDS = ["x64-int4", "x64-int8", "x64-fp32", "cuda-int4", "cuda-fp16", "directml-int4"]


@pytest.mark.parametrize(
    ("tied", "targets"), [(True, KINDS), (False, ["x64-int4", "directml-int4"])], ids=["tied", "untied"]
)
def test_the_predicted_size_is_within_two_percent_of_the_built_one(
    tmp_path: Path, tied: bool, targets: list[str]
) -> None:
    """Some 20 million weights: at that size the matrices outweigh the graph."""
    source = write_sparse_checkpoint(tmp_path / "source", architecture="qwen3", tied=tied, **SMALL)
    jobs = plan_jobs(source, targets, output=tmp_path / "out")
    for job, artifact in zip(jobs, run_jobs(jobs), strict=True):
        assert job.plan.artifact == pytest.approx(artifact.size, rel=0.02), job.target.name
        on_disk = sum(path.stat().st_size for path in artifact.path.iterdir())
        assert job.plan.disk == pytest.approx(on_disk, rel=0.02)


def test_the_plan_of_the_device_is_that_of_the_manifest(tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
    jobs = plan_jobs(tiny_checkpoint("qwen3").folder, ["x64-int4", "cuda-fp16"], output=tmp_path)
    for job, artifact in zip(jobs, run_jobs(jobs), strict=True):
        built = artifact.manifest.memory
        assert job.plan.device.kv_cache == built.kv_cache
        assert job.plan.device.activations == built.activations
        assert job.plan.device.budget == built.budget
        assert job.plan.device.weights == pytest.approx(built.weights, rel=0.02)
        assert job.plan.kv_bytes_per_token == artifact.manifest.kv_cache.bytes_per_token


class TestFromTheConfigurationAlone:
    @staticmethod
    def folders() -> list[Path]:
        shared = shared_folder()
        if shared is None:
            pytest.skip("no official configurations (QTOOL_SHARED)")
        return sorted(path for path in (shared / "real-models" / "configs").iterdir() if path.is_dir())

    def test_every_official_configuration_is_planned_at_once_or_refused(self) -> None:
        planned = []
        for folder in self.folders():
            started = time.perf_counter()
            try:
                jobs = plan_jobs(folder, qtool_targets.names(), plan_only=True)
            except UnsupportedModelError as error:
                assert "model_type" in error.message  # another architecture, not a size that does not fit
                continue
            assert time.perf_counter() - started < 1
            planned.append(folder.name)
            sizes = {job.target.name: job.plan.artifact for job in jobs}
            assert sizes["x64-int4"] < sizes["x64-int8"] < sizes["cuda-fp16"] < sizes["x64-fp32"]
        assert {"Qwen2.5-0.5B-Instruct", "Qwen3-0.6B", "Qwen3-4B"} <= set(planned)

    def test_the_plan_is_near_that_of_the_whole_checkpoint(self, tmp_path: Path) -> None:
        source = write_sparse_checkpoint(tmp_path / "model", architecture="qwen3", **SMALL)
        (whole,) = plan_jobs(source, ["x64-int4"])
        for path in source.glob("*.safetensors"):
            path.unlink()
        (bare,) = plan_jobs(source, ["x64-int4"], plan_only=True)
        assert bare.plan.artifact == pytest.approx(whole.plan.artifact, rel=0.01)
        assert bare.plan.device == whole.plan.device
        assert bare.checkpoint.name == whole.checkpoint.name == "model"

    def test_nothing_heavy_is_imported(self, tiny_checkpoint: Checkpoints) -> None:
        import subprocess

        script = (
            "import sys; from qtool.jobs import plan_jobs; plan_jobs(sys.argv[1], ['x64-int4']);"
            "print([name for name in ('onnx', 'onnxruntime', 'torch', 'tokenizers') if name in sys.modules])"
        )
        command = [sys.executable, "-c", script, str(tiny_checkpoint().folder)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"

    def test_a_build_still_needs_weights(self, tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
        from qtool.errors import SourceError

        (tmp_path / "bare").mkdir()
        config = (tiny_checkpoint().folder / "config.json").read_bytes()
        (tmp_path / "bare" / "config.json").write_bytes(config)
        with pytest.raises(SourceError, match="no weights"):
            qtool.build(tmp_path / "bare", target="x64-int4", output=tmp_path / "out")


def with_budget(megabytes: int, context: int = 200) -> Target:
    target = qtool_targets.load("x64-int4")
    return replace(target, memory=replace(target.memory, budget_mb=megabytes, context=context))


class TestBudget:
    def test_a_model_over_the_budget_is_refused_before_any_work(
        self, tmp_path: Path, tiny_checkpoint: Checkpoints
    ) -> None:
        stages: list[str] = []
        with pytest.raises(
            BudgetError, match=r"would need \d+ MB at a context of 200.* budget is 50 MB"
        ) as e:
            qtool.build(
                tiny_checkpoint().folder,
                target=with_budget(50),
                output=tmp_path / "new" / "out",
                progress=lambda stage, done, total: stages.append(stage),
            )
        assert e.value.exit_code == 6
        assert "--ignore-budget" in e.value.hint
        assert (stages, list(tmp_path.iterdir())) == ([], [])

    def test_it_is_built_all_the_same_when_asked_for(
        self, tmp_path: Path, tiny_checkpoint: Checkpoints
    ) -> None:
        artifact = qtool.build(
            tiny_checkpoint().folder, target=with_budget(50), output=tmp_path / "out", ignore_budget=True
        )
        assert artifact.manifest.memory.peak > artifact.manifest.memory.budget == 50_000_000

    def test_the_context_in_the_hint_fits_and_is_most_of_what_fits(self, tmp_path: Path) -> None:
        source = write_sparse_checkpoint(tmp_path / "m", **{**SMALL, "max_position_embeddings": 30_000})
        target = with_budget(150, context=30_000)
        (job,) = plan_jobs(source, [target])
        assert not job.plan.fits
        with pytest.raises(BudgetError) as caught:
            job.plan.check_budget()
        suggested = int(caught.value.hint.partition("--context ")[2].split()[0])
        plans = {
            context: plan_jobs(source, [target], context=context)[0].plan
            for context in (suggested, suggested * 2)
        }
        assert [plan.fits for plan in plans.values()] == [True, False]

    def test_no_context_is_suggested_where_none_would_fit(
        self, tmp_path: Path, tiny_checkpoint: Checkpoints
    ) -> None:
        (job,) = plan_jobs(tiny_checkpoint().folder, [with_budget(10)])
        with pytest.raises(BudgetError) as caught:
            job.plan.check_budget()
        assert "--context" not in caught.value.hint

    def test_a_longer_context_needs_more(self, tiny_checkpoint: Checkpoints) -> None:
        def plan(context: int) -> Plan:
            return plan_jobs(tiny_checkpoint().folder, ["x64-int4"], context=context)[0].plan

        short, long = plan(10), plan(250)
        per_token = long.kv_bytes_per_token
        assert long.device.kv_cache - short.device.kv_cache == 240 * per_token
        assert long.artifact > short.artifact  # the rotary tables
        assert (short.context, long.context) == (10, 250)


def test_the_default_context_is_at_most_the_models(tiny_checkpoint: Checkpoints) -> None:
    (job,) = plan_jobs(tiny_checkpoint().folder, ["x64-int4"])
    assert job.context == job.plan.context == 256 < job.target.memory.context


@pytest.mark.parametrize("context", [0, -1, 257, 10**9])
def test_a_context_that_the_model_does_not_have_is_refused(
    tiny_checkpoint: Checkpoints, context: int
) -> None:
    with pytest.raises(TargetError, match=f"the context {context} is not between 1 and 256"):
        plan_jobs(tiny_checkpoint().folder, ["x64-int4"], context=context)


def test_a_group_size_that_does_not_fit_is_refused_in_the_plan(tmp_path: Path) -> None:
    source = write_sparse_checkpoint(tmp_path / "m", intermediate_size=1000)
    with pytest.raises(UnsupportedModelError, match=r"down_proj\.weight has 1000 input features"):
        plan_jobs(source, ["x64-int4"])
    plan_jobs(source, ["x64-fp32"])  # floats have no groups
