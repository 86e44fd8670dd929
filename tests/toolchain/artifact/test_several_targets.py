"""Several targets in one run: one pass over the weights, and the bytes of single builds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qtool.checkpoint import Checkpoint, Weight
from qtool.jobs import Job, plan_jobs
from qtool.pipeline import run_jobs
from support.fixtures import Artifacts, Checkpoints

from .test_reproducible import digests


class CountedReads:
    """Wraps the weights of jobs, and notes how often each row is read."""

    def __init__(self, jobs: list[Job]) -> None:
        self.rows: dict[str, Counter[int]] = {}
        self.largest = 0
        checkpoint = jobs[0].checkpoint
        weights = {name: self._wrapped(weight) for name, weight in checkpoint.weights.items()}
        counted: Checkpoint = replace(checkpoint, weights=weights)
        self.jobs = [replace(job, checkpoint=counted) for job in jobs]

    def _wrapped(self, weight: Weight) -> Weight:
        rows = self.rows.setdefault(weight.name, Counter())

        def read(start: int, stop: int) -> Any:
            rows.update(range(start, stop))
            values = weight.read(start, stop)
            self.largest = max(self.largest, values.size)
            return values

        return replace(weight, read=read)

    def times(self) -> dict[str, set[int]]:
        """Tensor -> how often its rows were read."""
        return {name: set(rows.values()) for name, rows in self.rows.items()}


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_the_bytes_are_those_of_single_builds(
    tmp_path: Path, tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts, architecture: str
) -> None:
    names = ["x64-int4", "arm64-int4", "x64-int8", "cuda-fp16", "directml-int4", "web-int4"]
    jobs = plan_jobs(tiny_checkpoint(architecture).folder, names, output=tmp_path)
    artifacts = run_jobs(jobs, threads=3)
    assert [artifact.path for artifact in artifacts] == [
        tmp_path / f"tiny-{architecture}-{name}" for name in names
    ]
    for name, artifact in zip(names, artifacts, strict=True):
        assert digests(artifact.path) == digests(tiny_artifact(name, architecture)), name


@pytest.mark.parametrize("tied", [True, False])
def test_planning_reads_nothing_and_building_reads_every_row_once(
    tmp_path: Path, tiny_checkpoint: Checkpoints, tied: bool
) -> None:
    """Also the embedding that a tied head shares."""
    jobs = plan_jobs(tiny_checkpoint("qwen2", tied=tied).folder, ["x64-int4"], output=tmp_path / "out")
    counted = CountedReads(jobs)
    assert all(not rows for rows in counted.rows.values())
    run_jobs(counted.jobs)
    shapes = {name: weight.shape for name, weight in jobs[0].checkpoint.weights.items()}
    assert counted.rows == {name: Counter(range(shape[0])) for name, shape in shapes.items()}


def test_several_targets_share_one_reading(tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
    """Whatever forms they store a tensor in."""
    names = ["x64-int4", "arm64-int4", "x64-int8", "web-int4", "cuda-fp16", "cuda-int4", "x64-fp32"]
    counted = CountedReads(plan_jobs(tiny_checkpoint("qwen2").folder, names, output=tmp_path))
    run_jobs(counted.jobs)
    assert set().union(*counted.times().values()) == {1}


def test_large_tensors_are_read_in_pieces(tmp_path: Path) -> None:
    """What is in memory at a time does not grow with the model."""
    from support.sparse import write_sparse_checkpoint

    source = write_sparse_checkpoint(tmp_path / "source", vocab_size=40_000)
    for target in ("x64-int4", "x64-int8", "x64-fp32"):
        counted = CountedReads(plan_jobs(source, [target], output=tmp_path / target))
        run_jobs(counted.jobs)
        assert counted.times()["model.embed_tokens.weight"] == {1}
        assert counted.largest <= 1 << 19 < 40_000 * 64


def test_one_target_that_cannot_be_built_leaves_none(tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
    from qtool.errors import BudgetError, OutputError

    source = tiny_checkpoint("qwen2").folder
    output = tmp_path / "out"
    jobs = plan_jobs(source, ["x64-int4", "x64-int8"], output=output)
    tight = replace(jobs[1].plan, device=replace(jobs[1].plan.device, budget=1))
    with pytest.raises(BudgetError, match="x64-int8"):
        run_jobs([jobs[0], replace(jobs[1], plan=tight)])
    assert not output.exists()
    jobs[1].output.mkdir(parents=True)
    with pytest.raises(OutputError, match="x64-int8 exists already"):
        run_jobs(jobs)
    assert list(output.iterdir()) == [jobs[1].output]
