"""Fetching the emulated system where that is not possible: each error says what to do. Without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qtool.emulate.packages import (
    FetchError,
    install_wheels,
    python_version,
    system_sources,
    unpack_system,
)
from qtool.errors import EmulationError


def test_apt_sources_of_the_users_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "ports.sources"
    monkeypatch.setenv("QTOOL_APT_SOURCES", str(sources))
    with pytest.raises(EmulationError, match=r"ports\.sources lists no archive") as caught:
        system_sources()
    assert "Debian container" in caught.value.hint
    sources.write_text("Types: deb\n")
    assert system_sources() == sources


@pytest.mark.parametrize(("missing", "package"), [("apt-get", "apt"), ("dpkg-deb", "dpkg")])
def test_a_missing_tool_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, package: str
) -> None:
    for tool in {"apt-get", "dpkg-deb"} - {missing}:
        (tmp_path / tool).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulationError, match=f"{missing} is not installed") as caught:
        unpack_system(tmp_path, tmp_path)
    assert f"'{package}'" in caught.value.hint


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")
def test_an_archive_that_cannot_be_reached(tmp_path: Path) -> None:
    sources = tmp_path / "sources.list"
    sources.write_text(f"deb file://{tmp_path}/nowhere stable main\n")
    with pytest.raises(FetchError, match="lists of Debian's packages for arm64 cannot be had") as caught:
        unpack_system(tmp_path / "system", sources)
    assert "nowhere" in caught.value.message
    assert "network" in caught.value.hint
    assert "QTOOL_APT_SOURCES" in caught.value.hint


def test_a_wheel_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(FetchError, match=r"wheels for aarch64 \(no-such-package==1\)") as caught:
        install_wheels(tmp_path, ["no-such-package==1"], "3.11")
    assert "aarch64 and Python 3.11" in caught.value.hint


def test_the_python_of_a_system_is_found_by_its_library(tmp_path: Path) -> None:
    with pytest.raises(EmulationError, match="has no Python"):
        python_version(tmp_path)
    library = tmp_path / "usr" / "lib" / "python3.13"
    library.mkdir(parents=True)
    (library / "os.py").touch()
    (tmp_path / "usr" / "lib" / "python3").mkdir()
    assert python_version(tmp_path) == "3.13"
