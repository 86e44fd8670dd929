"""`qtool.build` and the two steps it is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import qtool
import qtool_targets
from qtool.errors import QtoolError, SourceError
from qtool.jobs import plan_jobs
from qtool_targets import TargetError
from support.fixtures import Artifacts, Checkpoints


def test_output_is_called_after_model_and_target(
    tmp_path: Path, tiny_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    artifact = qtool.build(tiny_checkpoint("qwen3").folder, target="arm64-int8")
    assert artifact.path == Path("tiny-qwen3-arm64-int8")
    assert artifact.path.is_dir()


def test_several_targets_go_below_the_output(tiny_checkpoint: Checkpoints) -> None:
    jobs = plan_jobs(tiny_checkpoint("qwen3").folder, ["x64-int4", "web-int4"], output="builds")
    assert [job.output for job in jobs] == [
        Path("builds/tiny-qwen3-x64-int4"),
        Path("builds/tiny-qwen3-web-int4"),
    ]


def test_a_target_is_a_name_a_file_or_an_object(tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
    from importlib import resources

    file = tmp_path / "mine.toml"
    text = (resources.files(qtool_targets) / "x64-int4.toml").read_text("utf-8")
    file.write_text(text.replace('name = "x64-int4"', 'name = "mine"'))
    jobs = plan_jobs(tiny_checkpoint().folder, ["x64-int4", file, str(file), qtool_targets.load(file)])
    assert [job.target.name for job in jobs] == ["x64-int4", "mine", "mine", "mine"]
    assert len({job.plan.artifact for job in jobs}) == 1


def test_size_is_that_of_the_files_but_the_manifest(tiny_artifact: Artifacts, tmp_path: Path) -> None:
    from qtool.pipeline import Artifact
    from qtool_runtime import manifest

    folder = tiny_artifact("x64-int4")
    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    assert Artifact(folder, manifest.read(folder)).size == sum(path.stat().st_size for path in files)


def test_progress_counts_every_byte_once(tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
    calls: list[tuple[str, int, int]] = []
    artifact = qtool.build(
        tiny_checkpoint().folder,
        target="x64-int4",
        output=tmp_path / "out",
        threads=1,
        progress=lambda *call: calls.append(call),
    )
    assert [stage for stage, done, total in calls if total == 0] == ["export", "package"]
    quantized = [(done, total) for stage, done, total in calls if stage == "quantize"]
    assert [done for done, _ in quantized] == sorted({done for done, _ in quantized})
    data = (artifact.path / "model.onnx.data").stat().st_size
    assert {total for _, total in quantized} == {data}
    assert data * 0.98 < quantized[-1][0] <= data  # the rest is padding between tensors


@pytest.mark.parametrize("model", ["", "no/such/folder/anywhere", "nothing", "/dev/null", ".", "a\nb", "~"])
def test_what_is_no_model_is_a_source_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for plan_only in (False, True):
        with pytest.raises(SourceError):
            plan_jobs(model, ["x64-int4"], plan_only=plan_only)


def test_unknown_names_are_refused(tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
    with pytest.raises(TargetError, match="unknown target"):
        qtool.build(tiny_checkpoint().folder, target="x64-int3", output=tmp_path / "out")
    with pytest.raises(QtoolError, match="unknown exporter 'tvm'; known: native, optimum"):
        qtool.build(tiny_checkpoint().folder, target="x64-int4", exporter="tvm", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_package_is_light_until_it_is_used() -> None:
    """`import qtool` and the command line's help must not wait for numpy."""
    script = (
        "import sys, qtool, qtool.cli; print([n for n in ('numpy', 'onnx_ir', 'rich') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'bild'"):
        qtool.bild  # noqa: B018
