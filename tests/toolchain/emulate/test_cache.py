"""The cache of emulated systems: whole or not there, one maker at a time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from qtool.emulate.cache import cache_root, kept_folder
from qtool.errors import EmulationError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processors are emulated on Linux only")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "qtool" / "emulate"


def fill(folder: Path) -> None:
    (folder / "file").write_text("content")


def silent(text: str) -> None:
    raise AssertionError(f"nothing to note, but: {text}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_folder_is_made_once(cache: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        fill(folder)

    first = kept_folder("system", ("a", "b"), make, silent)
    assert kept_folder("system", ("a", "b"), make, silent) == first
    assert (len(made), (first / "file").read_text()) == (1, "content")
    assert names(cache) == [first.name]


def test_other_inputs_are_another_folder() -> None:
    inputs = [("a", "b"), ("b", "a"), ("ab",), ("a",)]
    assert len({kept_folder("system", each, fill, silent) for each in inputs}) == len(inputs)


@pytest.mark.parametrize("error", [EmulationError("no network"), KeyboardInterrupt()])
def test_a_failed_set_up_leaves_nothing_and_can_be_tried_again(cache: Path, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(type(error)):
        kept_folder("system", ("a",), fail, silent)
    assert names(cache) == []
    assert (kept_folder("system", ("a",), fill, silent) / "file").is_file()


def test_what_a_killed_process_left_does_not_get_in(cache: Path) -> None:
    place = kept_folder("system", ("a",), fill, silent)
    place.rename(place.with_name(f"{place.name}.partial"))
    (place.with_name(f"{place.name}.partial") / "half").touch()
    assert [path.name for path in kept_folder("system", ("a",), fill, silent).iterdir()] == ["file"]
    assert names(cache) == [place.name]


SLOW = """
import os, sys, time
from pathlib import Path
from qtool.emulate.cache import kept_folder
def make(folder):
    print("making", flush=True)
    time.sleep(1.5)
    (folder / "file").write_text(str(os.getpid()))
print((kept_folder("system", ("a",), make, print) / "file").read_text())
"""


def test_of_two_processes_one_makes_it_and_the_other_waits() -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True)

    with start() as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "making\n"
        with start() as second:
            waited, _ = second.communicate(timeout=60)
        made, _ = first.communicate(timeout=60)
    assert waited == f"another process sets it up; waiting\n{made}"


def test_a_killed_maker_holds_no_lock() -> None:
    with subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "making\n"
        process.kill()
    started = time.monotonic()
    assert (kept_folder("system", ("a",), fill, silent) / "file").read_text() == "content"
    assert time.monotonic() - started < 10


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EmulationError, match="cannot write the cache") as caught:
        kept_folder("system", ("a",), fill, silent)
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_a_relative_cache_folder_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The base directory specification says so."""
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "qtool" / "emulate"
