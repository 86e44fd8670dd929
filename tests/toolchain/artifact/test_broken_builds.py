"""Builds that end early: killed, interrupted, out of space, or with weights that cannot be used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qtool
import qtool_runtime
from qtool.artifact import verify
from qtool.errors import OutputError, SourceError, UnsupportedModelError
from qtool.jobs import plan_jobs
from qtool.pipeline import run_jobs
from support.fixtures import Checkpoints
from support.sparse import write_sparse_checkpoint
from support.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


@pytest.fixture(scope="module")
def slow_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that takes some seconds to quantize."""
    return write_sparse_checkpoint(tmp_path_factory.mktemp("slow") / "slow", vocab_size=2_000_000)


@pytest.fixture
def start(slow_source: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a real `qtool build` and waits until it writes weights."""
    running: list[subprocess.Popen[str]] = []
    # A child inherits "ignore SIGINT", which shells set for what they start in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def build(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "qtool", "build", str(slow_source), "--target", "x64-int4"]
        command += ["--threads", "1", "--output", str(tmp_path / "out"), *options]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(child)
        deadline = time.monotonic() + 30
        while not any(path.stat().st_size for path in tmp_path.glob(".out.partial-*/model.onnx.data")):
            assert child.poll() is None, f"ended before it could be stopped: {child.communicate()}"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return child

    yield build
    signal.signal(signal.SIGINT, before)
    for child in running:
        child.kill()
        child.communicate()


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()


def refuses(folder: Path) -> bool:
    """Whether nothing takes the folder for an artifact."""
    with pytest.raises(qtool_runtime.ArtifactError):
        qtool_runtime.load(folder)
    return bool(verify.verify(folder).problems)


def test_a_killed_build_leaves_nothing_that_looks_whole_and_the_next_one_cleans_up(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, tiny_checkpoint: Checkpoints
) -> None:
    kill(start())
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-")
    assert refuses(left)
    assert refuses(tmp_path / "out")
    artifact = qtool.build(tiny_checkpoint().folder, target="x64-int4", output=tmp_path / "out")
    assert not verify.verify(artifact.path).problems
    assert list(tmp_path.iterdir()) == [artifact.path]


def test_a_killed_forced_build_keeps_the_old_artifact(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, tiny_checkpoint: Checkpoints
) -> None:
    old = qtool.build(tiny_checkpoint().folder, target="x64-int8", output=tmp_path / "out")
    kill(start("--force"))
    assert not verify.verify(old.path).problems
    qtool.build(tiny_checkpoint().folder, target="x64-int4", output=tmp_path / "out", force=True)
    assert list(tmp_path.iterdir()) == [old.path]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_build_ends_at_once_and_leaves_nothing(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
) -> None:
    child = start()
    asked = time.monotonic()
    child.send_signal(number)
    _, stderr = child.communicate(timeout=20)
    assert time.monotonic() - asked < 2
    assert child.returncode == 128 + number
    assert "Traceback" not in stderr
    assert ("interrupted" in stderr) == (number == signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


def limited(source: Path, output: Path, size: int) -> subprocess.CompletedProcess[str]:
    """Builds in a process whose files may have at most `size` bytes, as on a disk that is nearly full."""
    script = (
        "import resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); del sys.argv[1]"
    )
    script += "\nfrom qtool.cli import main; main()"
    options = ["build", str(source), "--target", "x64-int4", "--output", str(output)]
    command = [sys.executable, "-c", script, str(size), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "size", [1000, 60_000, 70_000], ids=["not even small files", "not the weights", "some"]
)
def test_files_that_cannot_grow_are_an_output_error(
    tiny_checkpoint: Checkpoints, tmp_path: Path, size: int
) -> None:
    done = limited(tiny_checkpoint().folder, tmp_path / "out", size)
    assert done.returncode == 11, done.stderr
    assert f"error: cannot write {tmp_path / 'out'}: File too large" in done.stderr
    assert "hint: Free some space" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_an_output_error_before_weights_are_read(small_disk: Path, slow_source: Path) -> None:
    jobs = plan_jobs(slow_source, ["x64-int4"], output=small_disk / "out")
    read: list[str] = []

    def noted(name: str, weight: Any) -> Any:
        return replace(weight, read=lambda start, stop: read.append(name) or weight.read(start, stop))

    weights = {name: noted(name, weight) for name, weight in jobs[0].checkpoint.weights.items()}
    with pytest.raises(OutputError, match="No space left on device"):
        run_jobs([replace(jobs[0], checkpoint=replace(jobs[0].checkpoint, weights=weights))])
    assert read == []
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_keeps_the_old_artifact(
    small_disk: Path, slow_source: Path, tiny_checkpoint: Checkpoints
) -> None:
    old = qtool.build(tiny_checkpoint().folder, target="x64-int4", output=small_disk / "out")
    with pytest.raises(OutputError, match="No space left on device"):
        qtool.build(slow_source, target="x64-int4", output=small_disk / "out", force=True)
    assert not verify.verify(old.path).problems


@pytest.mark.parametrize("stage", ["export", "quantize", "package"])
def test_an_exception_at_any_stage_leaves_nothing(
    tmp_path: Path, tiny_checkpoint: Checkpoints, stage: str
) -> None:
    class StopError(Exception):
        pass

    def progress(name: str, done: int, total: int) -> None:
        if name == stage:
            raise StopError

    source = tiny_checkpoint("qwen3").folder
    old = qtool.build(source, target="x64-int4", output=tmp_path / "old")
    for name in ("new/deep/out", "old"):
        with pytest.raises(StopError):
            qtool.build(
                source, target="x64-int8", output=tmp_path / name, force=name == "old", progress=progress
            )
    assert list(tmp_path.iterdir()) == [old.path]
    assert not verify.verify(old.path).problems


NOT_FINITE, TOO_LARGE = "holds values that are infinite or not a number", "has values beyond float16's range"
BROKEN = {
    "NaN": ("model.layers.1.mlp.up_proj.weight", np.nan, "x64-int4", NOT_FINITE),
    "infinity in a norm": ("model.norm.weight", np.inf, "x64-int4", NOT_FINITE),
    "infinity in the head": ("model.embed_tokens.weight", -np.inf, "x64-fp32", NOT_FINITE),
    "beyond float16": ("model.layers.0.self_attn.q_proj.weight", 7e4, "cuda-fp16", TOO_LARGE),
    "beyond float16, int4": ("model.layers.0.mlp.down_proj.weight", 7e4, "cuda-int4", TOO_LARGE),
    "bias beyond float16": ("model.layers.0.self_attn.k_proj.bias", -9e9, "cuda-int4", TOO_LARGE),
}


@pytest.mark.parametrize("case", BROKEN)
def test_weights_that_cannot_be_used_are_a_source_error_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, value, target, message = BROKEN[case]
    from support import tiny

    real = tiny.random_tensors

    def damaged(config: Any, seed: int) -> Any:
        tensors = real(config, seed)
        tensors[name].flat[-1] = value
        return tensors

    monkeypatch.setattr(tiny, "random_tensors", damaged)
    source = write_tiny_checkpoint(tmp_path / "source", dtype="F32").folder
    with pytest.raises(SourceError) as caught:
        qtool.build(source, target=target, output=tmp_path / "out")
    assert caught.value.message.startswith(f"the tensor {name} {message}")
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == [source]


def test_a_group_size_that_does_not_divide_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source", intermediate_size=80).folder
    with pytest.raises(UnsupportedModelError, match=r"down_proj\.weight has 80 input features") as caught:
        qtool.build(source, target="x64-int4", output=tmp_path / "out")
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == [source]


def test_a_source_that_changes_during_the_build_is_noticed(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source").folder
    weights = source / "model.safetensors"

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "export":
            weights.write_bytes(weights.read_bytes()[:-2])

    with pytest.raises(SourceError, match="was changed while it was being read"):
        qtool.build(source, target="x64-int4", output=tmp_path / "out", progress=progress)
    assert list(tmp_path.iterdir()) == [source]


def test_where_positioned_writes_do_not_exist_the_bytes_are_the_same(
    tmp_path: Path, tiny_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has no pwrite, and macOS reserves no space."""
    source = tiny_checkpoint("qwen3").folder
    expected = qtool.build(source, target="x64-int4", output=tmp_path / "usual").manifest
    monkeypatch.delattr(os, "pwrite")
    monkeypatch.delattr(os, "posix_fallocate")
    assert qtool.build(source, target="x64-int4", output=tmp_path / "other", threads=4).manifest == expected


def test_a_file_system_that_cannot_reserve_space_is_written_all_the_same(
    tmp_path: Path, tiny_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(descriptor: int, offset: int, size: int) -> None:
        raise OSError(95, os.strerror(95))  # EOPNOTSUPP

    monkeypatch.setattr(os, "posix_fallocate", refused)
    artifact = qtool.build(tiny_checkpoint().folder, target="x64-int4", output=tmp_path / "out")
    assert not verify.verify(artifact.path).problems
