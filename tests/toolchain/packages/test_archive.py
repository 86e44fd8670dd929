"""Archives for apps: aligned, not compressed, the same bytes each time, and what is refused."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qtool_targets
from qtool.errors import ArtifactError, OutputError
from qtool.packages import archive as module
from qtool.packages.archive import STORE_LIMITS, Archive, write_archive
from qtool_runtime import manifest
from support.fixtures import Artifacts

PAGE = 16384


def content_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where a file's content starts: behind its local header, as the archive itself has it."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = file.read(30)
    assert header[:4] == b"PK\x03\x04"
    name, extra = struct.unpack("<HH", header[26:])
    return entry.header_offset + 30 + name + extra


def test_files_lie_on_pages_as_they_are(tiny_artifact: Artifacts, tmp_path: Path) -> None:
    artifact = tiny_artifact("android-arm64-int4")
    archive = write_archive(artifact, tmp_path / "model.zip")
    assert archive.bytes == archive.path.stat().st_size
    with (
        zipfile.ZipFile(archive.path) as opened,
        archive.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        assert opened.testzip() is None
        assert opened.namelist() == sorted(path.name for path in artifact.iterdir())
        for entry in opened.infolist():
            start = content_offset(archive.path, entry)
            assert (entry.compress_type, start % PAGE) == (zipfile.ZIP_STORED, 0)
            assert mapped[start : start + entry.file_size] == (artifact / entry.filename).read_bytes()


def test_unpacked_it_is_the_artifact(tiny_artifact: Artifacts, tmp_path: Path) -> None:
    artifact = tiny_artifact("android-arm64-int4")
    archive = write_archive(artifact, tmp_path / "model.zip")
    with zipfile.ZipFile(archive.path) as opened:
        opened.extractall(tmp_path / "unpacked")
    assert manifest.read(tmp_path / "unpacked") == manifest.read(artifact)


def test_the_bytes_depend_on_the_artifact_alone(tiny_artifact: Artifacts, tmp_path: Path) -> None:
    artifact = tiny_artifact("android-arm64-int4")
    shutil.copytree(artifact, tmp_path / "later", copy_function=shutil.copyfile)
    one = write_archive(artifact, tmp_path / "one.zip").path
    other = write_archive(tmp_path / "later", tmp_path / "folder" / "other.zip").path
    assert one.read_bytes() == other.read_bytes()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=6), limit=st.sampled_from([100, 1 << 31]))
def test_any_sizes_are_aligned(
    sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also files that need sizes of 64 bits, which start at `limit` bytes here."""
    folder = tmp_path_factory.mktemp("files")
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    with zipfile.ZipFile(folder / "archive", "w") as archive:
        for index, size in enumerate(sizes):
            (folder / f"file-{index}").write_bytes(bytes(size))
            module._add(archive, folder / f"file-{index}", f"file-{'x' * index}")
    with zipfile.ZipFile(folder / "archive") as archive:
        assert archive.testzip() is None
        assert [entry.file_size for entry in archive.infolist()] == sizes
        assert all(content_offset(folder / "archive", entry) % PAGE == 0 for entry in archive.infolist())


@pytest.mark.skipif(shutil.which("zipalign") is None, reason="zipalign is not installed")
def test_zipalign_agrees(tiny_artifact: Artifacts, tmp_path: Path) -> None:
    path = write_archive(tiny_artifact("android-arm64-int4"), tmp_path / "model.zip").path
    subprocess.run(["zipalign", "-c", str(PAGE), path], check=True)


def test_stores_take_what_is_small_enough() -> None:
    small, large = (Archive(Path("a"), 1, size) for size in (300_000_000, 1_990_000_000))
    assert all(small.fits(limit) for limit in STORE_LIMITS)
    assert [large.fits(limit) for limit in STORE_LIMITS] == [False, True, False, True]


def test_what_the_android_target_allows_is_one_pack_for_google_play() -> None:
    most = qtool_targets.load("android-arm64-int4").gates.max_size_mb
    assert most is not None
    assert Archive(Path("a"), 1, int(most * 1e6)).fits(STORE_LIMITS[0])


class TestRefusals:
    def test_of_what_is_no_artifact(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="is not an artifact"):
            write_archive(tmp_path, tmp_path / "model.zip")
        assert list(tmp_path.iterdir()) == []

    def test_of_what_is_there(self, tiny_artifact: Artifacts, tmp_path: Path) -> None:
        artifact = tiny_artifact("android-arm64-int4")
        path = write_archive(artifact, tmp_path / "model.zip").path
        with pytest.raises(OutputError, match="exists already"):
            write_archive(artifact, path)
        write_archive(artifact, path, force=True)

    @pytest.mark.parametrize("what", ["text", "another archive", "folder"])
    def test_of_replacing_anything_else(self, what: str, tiny_artifact: Artifacts, tmp_path: Path) -> None:
        path = tmp_path / "mine.zip"
        if what == "text":
            path.write_text("mine")
        elif what == "folder":
            path.mkdir()
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("manifest.json", '{"name": "mine"}')
        with pytest.raises(OutputError, match="is not an archive of an artifact, so --force does not"):
            write_archive(tiny_artifact("android-arm64-int4"), path, force=True)
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["model.zip", "assets/model.zip"])
def test_an_artifact_does_not_go_into_itself(tiny_artifact: Artifacts, place: str) -> None:
    artifact = tiny_artifact("android-arm64-int4")
    before = sorted(artifact.rglob("*"))
    with pytest.raises(OutputError, match="lies within the artifact"):
        write_archive(artifact, artifact / place)
    assert sorted(artifact.rglob("*")) == before
