"""The output folder appears whole or not at all, and nothing of the user's is ever replaced."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from qtool.artifact import folder as module
from qtool.artifact.folder import check_destination, new_folder
from qtool.errors import OutputError

ARTIFACT = {"manifest.json": '{"format_version": 1, "files": [{"path": "model.onnx"}]}', "model.onnx": "old"}


def write(folder: Path, content: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (folder / name).write_text(text)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder, hidden files too."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else "/"
        for path in sorted(folder.rglob("*"))
    }


def build(destination: Path, *, force: bool = False, content: str = "new") -> None:
    with new_folder(destination, force=force) as partial:
        (partial / "model.onnx").write_text(content)


def test_appears_when_the_block_ends(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "out", force=False) as partial:
        assert partial.parent == tmp_path / "a"
        assert partial.name.startswith(".out.partial-")
        (partial / "file").write_text("x")
        assert not (tmp_path / "a" / "out").exists()
    assert tree(tmp_path) == {"a": "/", "a/out": "/", "a/out/file": "x"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_leaves_nothing_not_even_new_parents(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(error), new_folder(tmp_path / "there" / "b" / "out", force=False) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text("x")
        raise error
    assert tree(tmp_path) == {"there": "/"}


def test_an_error_of_the_operating_system_says_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="No space left on device") as caught,
        new_folder(tmp_path / "out", force=False),
    ):
        raise OSError(28, os.strerror(28))
    assert caught.value.exit_code == 11
    assert "Free some space" in caught.value.hint
    assert tree(tmp_path) == {}


def test_rights_are_those_that_the_user_gives_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        build(tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("what", ["file", "empty folder", "artifact", "dangling link", "link to an artifact"])
def test_whatever_is_there_is_refused_without_force(tmp_path: Path, what: str) -> None:
    place(tmp_path, what)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="out exists already") as caught:
        build(tmp_path / "out")
    assert "--force" in caught.value.hint
    assert tree(tmp_path) == before


def place(folder: Path, what: str) -> None:
    out = folder / "out"
    makers: dict[str, Callable[[], object]] = {
        "file": lambda: out.write_text("mine"),
        "empty folder": out.mkdir,
        "artifact": lambda: write(out, ARTIFACT),
        "dangling link": lambda: out.symlink_to("nowhere"),
        "link to an artifact": lambda: out.symlink_to(write(folder / "real", ARTIFACT).name),
        "folder of the user's": lambda: write(out, {"thesis.tex": "mine"}),
        "folder with some other manifest": lambda: write(
            out, {"manifest.json": '{"name": "an extension of a browser", "manifest_version": 3}', "a.js": ""}
        ),
        "folder with a manifest that is a list": lambda: write(out, {"manifest.json": "[1]", "a.js": ""}),
        "folder with a broken manifest": lambda: write(out, {"manifest.json": "{", "a.js": ""}),
        "artifact with notes of the user's": lambda: write(out, {**ARTIFACT, "notes.txt": "mine"}),
    }
    makers[what]()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("file", "is not a folder"),
        ("dangling link", "is a symbolic link"),
        ("link to an artifact", "is a symbolic link"),
        ("folder of the user's", "is not an artifact"),
        ("folder with some other manifest", "is not an artifact"),
        ("folder with a manifest that is a list", "is not an artifact"),
        ("folder with a broken manifest", "is not an artifact"),
        ("artifact with notes of the user's", "holds 'notes.txt', which is no file of the artifact"),
    ],
)
def test_force_replaces_nothing_but_an_artifact(tmp_path: Path, what: str, reason: str) -> None:
    place(tmp_path, what)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=reason) as caught:
        build(tmp_path / "out", force=True)
    assert "so --force does not replace it" in caught.value.message
    assert tree(tmp_path) == before


@pytest.mark.parametrize("what", ["empty folder", "artifact"])
def test_force_replaces_an_artifact(tmp_path: Path, what: str) -> None:
    place(tmp_path, what)
    build(tmp_path / "out", force=True)
    assert tree(tmp_path) == {"out": "/", "out/model.onnx": "new"}


def test_force_replaces_an_artifact_of_another_format_version(tmp_path: Path) -> None:
    text = '{"format_version": 99, "files": [{"path": "model.onnx", "more": 1}], "unknown": 2}'
    write(tmp_path / "out", {**ARTIFACT, "manifest.json": text})
    build(tmp_path / "out", force=True)
    assert tree(tmp_path) == {"out": "/", "out/model.onnx": "new"}


def test_a_failing_forced_build_keeps_the_old_artifact(tmp_path: Path) -> None:
    write(tmp_path / "out", ARTIFACT)
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out", force=True) as partial:
        (partial / "model.onnx").write_text("new")
        raise RuntimeError
    assert tree(tmp_path / "out") == ARTIFACT
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_failing_rename_puts_the_old_artifact_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", ARTIFACT)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.startswith(".out.partial-"):
            raise OSError(5, "the disk has an error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OutputError, match="the disk has an error"):
        build(tmp_path / "out", force=True)
    assert tree(tmp_path / "out") == ARTIFACT
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_something_that_appears_during_the_build_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already"), new_folder(tmp_path / "out", force=False):
        write(tmp_path / "out", {"mine": "1"})
    assert tree(tmp_path) == {"out": "/", "out/mine": "1"}


@pytest.mark.parametrize("name", [".", "sub/..", "../here", "out/"])
def test_relative_destinations_are_where_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also the current folder itself: the hidden folder is beside it, not inside."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    destination = Path(os.path.normpath(here / name))
    with new_folder(Path(name), force=True) as partial:
        assert partial.parent == destination.parent
        (partial / "model.onnx").write_text("new")
    assert tree(destination) == {"model.onnx": "new"}
    assert not [path for path in tmp_path.rglob(".*") if path.name.startswith(".")]


@pytest.mark.parametrize("parent", ["file", "file/deeper", "/proc/no/such"])
def test_a_parent_that_cannot_be_written_is_an_output_error(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot write"):
        build(tmp_path / parent / "out")
    assert tree(tmp_path) == {"file": "mine"}


def test_a_name_that_is_too_long_is_an_output_error(tmp_path: Path) -> None:
    for force in (False, True):
        with pytest.raises(OutputError, match="File name too long"):
            build(tmp_path / ("a" * 300), force=force)
    check_destination(tmp_path / ("a" * 300), force=True)  # not there: nothing to refuse yet
    assert tree(tmp_path) == {}


class TestLeftovers:
    def test_of_killed_builds_are_removed(self, tmp_path: Path) -> None:
        write(tmp_path / ".out.partial-0123abcd", {"model.onnx.data": "half"})
        (tmp_path / ".out.partial-00000000").mkdir()
        build(tmp_path / "out")
        assert tree(tmp_path) == {"out": "/", "out/model.onnx": "new"}

    def test_of_other_destinations_and_lookalikes_stay(self, tmp_path: Path) -> None:
        kept = [".other.partial-0123abcd", ".out.partial-notes", ".out.partial-0123abcd.txt", "out.partial-0"]
        for name in kept:
            write(tmp_path / name, {"x": "mine"})
        (tmp_path / ".out.partial-deadbeef").symlink_to(kept[0])
        build(tmp_path / "out")
        assert all((tmp_path / name / "x").exists() for name in kept)
        assert (tmp_path / ".out.partial-deadbeef").is_symlink()

    def test_names_with_characters_of_a_pattern_are_plain_names(self, tmp_path: Path) -> None:
        write(tmp_path / ".[ab]*.partial-0123abcd", {"x": "half"})
        write(tmp_path / ".aa.partial-0123abcd", {"x": "of another"})
        build(tmp_path / "[ab]*")
        assert tree(tmp_path).keys() == {
            "[ab]*", "[ab]*/model.onnx", ".aa.partial-0123abcd", ".aa.partial-0123abcd/x",
        }  # fmt: skip

    def test_an_artifact_that_was_on_its_way_out_comes_back(self, tmp_path: Path) -> None:
        """Killed between the two renames of a replacement."""
        write(tmp_path / ".out.partial-0123abcd" / "replaced", ARTIFACT)
        write(tmp_path / ".out.partial-ffffffff", {"model.onnx": "new", "manifest.json": "{}"})
        with pytest.raises(OutputError, match="exists already"):
            build(tmp_path / "out")
        assert tree(tmp_path / "out") == ARTIFACT
        assert list(tmp_path.iterdir()) == [tmp_path / "out"]

    def test_an_artifact_that_was_replaced_already_goes(self, tmp_path: Path) -> None:
        """Killed after both renames, before the old one was removed."""
        write(tmp_path / ".out.partial-0123abcd" / "replaced", ARTIFACT)
        write(tmp_path / "out", {**ARTIFACT, "model.onnx": "newer"})
        build(tmp_path / "out", force=True)
        assert tree(tmp_path) == {"out": "/", "out/model.onnx": "new"}

    def test_a_build_that_runs_is_left_alone(self, tmp_path: Path) -> None:
        with new_folder(tmp_path / "out", force=False) as first:
            (first / "file").write_text("first")
            with new_folder(tmp_path / "out", force=False) as second:
                assert first != second
                assert (first / "file").read_text() == "first"
            (tmp_path / "out").rmdir()  # the second was quicker; it goes, so that the first can finish
        assert tree(tmp_path) == {"out": "/", "out/file": "first"}

    def test_many_builds_to_one_place_at_once_leave_one_and_no_rest(self, tmp_path: Path) -> None:
        outcomes: list[str] = []
        start = threading.Barrier(8)

        def one(number: int) -> None:
            start.wait()
            try:
                build(tmp_path / "deep" / "out", content=str(number))
                outcomes.append(str(number))
            except OutputError as error:
                assert "exists already" in error.message or "Directory not empty" in error.message

        threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 1
        assert tree(tmp_path) == {"deep": "/", "deep/out": "/", "deep/out/model.onnx": outcomes[0]}

    def test_without_locks_nothing_is_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on Windows, and on network file systems that cannot lock a folder."""
        write(tmp_path / ".out.partial-0123abcd", {"x": "whose?"})
        monkeypatch.setattr(module, "fcntl", None)
        build(tmp_path / "out")
        assert tree(tmp_path).keys() == {
            "out", "out/model.onnx", ".out.partial-0123abcd", ".out.partial-0123abcd/x",
        }  # fmt: skip
