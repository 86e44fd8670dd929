"""Equal inputs give equal bytes, wherever, whenever and with however many threads they are built."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qtool
from support.fixtures import Artifacts, Checkpoints

TARGETS = ["x64-int4", "web-int4"]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 2, 4, 7])
def test_threads_and_folder_do_not_matter(
    tmp_path: Path, tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts, target: str, threads: int
) -> None:
    source = tiny_checkpoint("qwen3").folder
    built = qtool.build(source, target=target, output=tmp_path / "elsewhere", threads=threads)
    assert digests(built.path) == digests(tiny_artifact(target, "qwen3"))


def test_process_hash_seed_and_current_folder_do_not_matter(
    tmp_path: Path, tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts
) -> None:
    source = tiny_checkpoint("qwen2").folder
    expected = digests(tiny_artifact("x64-int4", "qwen2"))
    for seed, folder in (("1", tmp_path), ("4242", tmp_path / "deep" / "down")):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "qtool", "build", os.path.relpath(source, folder), "-t", "x64-int4"]
        environment = os.environ | {"PYTHONHASHSEED": seed, "TZ": f"UTC{seed[0]}", "COLUMNS": seed}
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        assert digests(folder / "tiny-qwen2-x64-int4") == expected


def test_the_date_does_not_matter(
    tmp_path: Path, tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    for clock in ("time", "time_ns"):
        now = getattr(time, clock)
        monkeypatch.setattr(time, clock, lambda now=now, clock=clock: now() * (2 if clock == "time" else 3))
    built = qtool.build(tiny_checkpoint("qwen2").folder, target="x64-int4", output=tmp_path / "later")
    assert digests(built.path) == digests(tiny_artifact("x64-int4", "qwen2"))


def test_no_file_holds_a_path_a_user_or_a_date(
    tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts
) -> None:
    source = tiny_checkpoint("qwen2").folder
    folder = tiny_artifact("x64-int4", "qwen2")
    secrets = {str(source), str(source.parent), str(folder.parent), str(Path.home()), str(Path.cwd())}
    secrets |= {name for name in (platform.node(), getpass.getuser()) if len(name) > 4}
    year = re.compile(rb"20[2-9]\d-\d\d-\d\d")
    for path in folder.iterdir():
        content = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in content, f"{path.name} holds {secret}"
        if path.name != "model.onnx.data":
            assert not year.search(content), f"{path.name} holds a date"


def test_another_input_gives_other_bytes(tiny_artifact: Artifacts) -> None:
    """What the tests above compare is able to differ."""
    assert digests(tiny_artifact("x64-int4", "qwen2")) != digests(tiny_artifact("x64-int4", "qwen3"))
    one, other = digests(tiny_artifact("x64-int4", "qwen2")), digests(tiny_artifact("arm64-int4", "qwen2"))
    assert one["manifest.json"] != other["manifest.json"]
