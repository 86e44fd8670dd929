"""Every difference between a folder and its manifest is found and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qtool_runtime.errors import ArtifactError
from qtool_runtime.integrity import check_files, find_problems
from qtool_runtime.manifest import read


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def test_whole_artifact_has_no_problems(artifact: Path) -> None:
    assert find_problems(artifact, read(artifact), hashes=True) == []
    check_files(artifact, read(artifact), hashes=True)


CHANGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (lambda folder: (folder / "tokenizer.json").unlink(), "missing", "tokenizer.json is missing"),
    "folder": (
        lambda folder: ((folder / "model.onnx").unlink(), (folder / "model.onnx").mkdir()),
        "missing",
        "model.onnx is missing",
    ),
    "truncated": (
        lambda folder: (folder / "model.onnx").write_bytes(b"1234"),
        "size",
        "model.onnx has 4 bytes instead of",
    ),
    "altered": (flip_a_bit, "sha256", "model.onnx has the SHA-256"),
    "extra": (lambda folder: (folder / "evil.onnx").write_text("x"), "extra", "evil.onnx is not listed"),
    "nested": (
        lambda folder: ((folder / "a").mkdir(), (folder / "a" / "b").write_text("x")),
        "extra",
        "a/b is not listed",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_and_named(copy: Path, name: str) -> None:
    change, kind, text = CHANGES[name]
    change(copy)
    assert [problem.kind for problem in find_problems(copy, read(copy), hashes=True)] == [kind]
    with pytest.raises(ArtifactError) as caught:
        check_files(copy, read(copy), hashes=True)
    assert text in caught.value.message
    assert caught.value.hint


def test_contents_and_unknown_files_are_only_looked_at_on_request(copy: Path) -> None:
    flip_a_bit(copy)
    (copy / "notes.txt").write_text("mine")
    check_files(copy, read(copy), hashes=False, extra=False)


def test_many_problems_are_counted(copy: Path) -> None:
    for index in range(9):
        (copy / f"{index}.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"0\.txt .*; and 4 more"):
        check_files(copy, read(copy), hashes=False)
