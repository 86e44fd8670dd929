"""The folder that `qtool package --web` writes, and where its libraries come from."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import qtool
from qtool.errors import MissingExtraError, OutputError
from qtool.web.libraries import cache_folder, find_libraries, pinned_libraries
from qtool.web.page import STATIC, package_web
from qtool_runtime.errors import ArtifactError
from support.places import node_modules

DOCUMENTATION = {
    "https://web.dev/cross-origin-isolation-guide/",  # in a warning of onnxruntime-web
    "https://docs.python.org/3.13/library/stdtypes.html#str.split",  # comments of the template engine
    "https://jinja.palletsprojects.com/en/3.0.x/templates/#assignments",
    "https://jinja.palletsprojects.com/en/3.1.x/templates/#macros",
}
"""Addresses in comments and messages of the libraries; nothing is loaded from there."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def libraries() -> dict[str, Path]:
    return find_libraries(node_modules())


@pytest.fixture
def own_npm(libraries: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `npm` that packs the real libraries instead of downloading them; returns where they are."""
    packages = tmp_path / "registry"
    for library in pinned_libraries():
        for file in library.file:
            copy = packages / library.specification.replace("/", "-") / "package" / file.source
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(libraries[file.target], copy)
    write_npm(
        tmp_path / "bin",
        f"""
import sys, tarfile, pathlib
command, specification, *rest = sys.argv[1:]
assert command == "pack" and "--ignore-scripts" in rest
name = specification.replace("/", "-")
destination = pathlib.Path(rest[rest.index("--pack-destination") + 1]) / "package.tgz"
with tarfile.open(destination, "w:gz", compresslevel=0) as archive:
    archive.add(pathlib.Path({str(packages)!r}) / name / "package", "package")
""",
        monkeypatch,
    )
    return packages


def write_npm(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(f"#!{sys.executable}\n{program}")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_folder_holds_page_libraries_and_artifact(page_folder: Path, web_artifact: Path) -> None:
    files = {path.relative_to(page_folder).as_posix() for path in page_folder.rglob("*") if path.is_file()}
    own = {path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file()}
    targets = {f"lib/{file.target}" for library in pinned_libraries() for file in library.file}
    model = {f"model/{path.name}" for path in web_artifact.iterdir()}
    assert files == own | targets | model
    for path in web_artifact.iterdir():
        assert (page_folder / "model" / path.name).read_bytes() == path.read_bytes()
    licenses = {name for name in files if name.endswith("LICENSE.txt")}
    assert len(licenses) == len(pinned_libraries())


def test_nothing_is_loaded_from_elsewhere(page_folder: Path) -> None:
    texts = [path for path in page_folder.rglob("*") if path.suffix in (".html", ".js", ".css", ".json")]
    assert len(texts) > 20
    for path in texts:
        found = set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w+/[^\s"'`)]*""", path.read_text("utf-8")))
        if path.is_relative_to(page_folder / "lib"):
            found = {url.rstrip(".") for url in found if "://" in url} - DOCUMENTATION
        assert not found, (path, found)


def test_folder_that_is_no_page_is_not_replaced(web_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").touch()
    with pytest.raises(OutputError, match="is not a page"):
        package_web(web_artifact, tmp_path / "letters", force=True)


def test_artifact_for_something_else_is_refused(tmp_path: Path) -> None:
    other = qtool.build(target="x64-int4", output=tmp_path / "other").path
    with pytest.raises(ArtifactError, match=r"'x64-int4' \(provider 'cpu'\); a browser needs") as caught:
        package_web(other, tmp_path / "page")
    assert caught.value.hint == "Build it with --target web-int4."


def test_damaged_artifact_is_refused(web_artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(web_artifact, tmp_path / "copy")
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json has 2 bytes instead of"):
        package_web(copy, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_missing_libraries_are_named(web_artifact: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="needs the npm package onnxruntime-web@") as caught:
        package_web(web_artifact, tmp_path / "page")
    assert "--fetch" in caught.value.hint
    with pytest.raises(MissingExtraError, match="has no package onnxruntime-web") as caught:
        package_web(web_artifact, tmp_path / "page", node_modules=tmp_path)
    assert "npm install --ignore-scripts onnxruntime-web@" in caught.value.hint
    assert not (tmp_path / "page").exists()


def test_libraries_are_fetched_once(
    own_npm: Path, cache: Path, web_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_web(web_artifact, tmp_path / "page", fetch=True)
    monkeypatch.setenv("PATH", "")  # no npm any more
    again = package_web(web_artifact, tmp_path / "again")
    assert again.files > 30
    assert not list(cache.glob(".partial-*"))


def test_altered_package_is_refused(own_npm: Path, cache: Path) -> None:
    altered = own_npm / pinned_libraries()[0].specification / "package" / "dist" / "ort.wasm.min.mjs"
    altered.write_bytes(altered.read_bytes().replace(b"Microsoft", b"Nanosoft!"))
    with pytest.raises(MissingExtraError, match=r"npm gave another dist/ort\.wasm\.min\.mjs"):
        find_libraries(fetch=True)


def test_package_without_a_file_is_refused(own_npm: Path, cache: Path) -> None:
    (own_npm / pinned_libraries()[0].specification / "package" / "dist" / "ort.wasm.min.mjs").unlink()
    with pytest.raises(MissingExtraError, match=r"the archive of onnxruntime-web@.* cannot be read"):
        find_libraries(fetch=True)


def test_missing_npm_is_reported(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingExtraError, match=r"npm, which fetches onnxruntime-web@.*, is not installed"):
        find_libraries(fetch=True)


def test_failing_npm_is_reported(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npm(tmp_path / "bin", "import sys; sys.exit('npm error network is unreachable')", monkeypatch)
    with pytest.raises(
        MissingExtraError, match=r"cannot fetch onnxruntime-web@.*: npm error network"
    ) as caught:
        find_libraries(fetch=True)
    assert "npm pack onnxruntime-web@" in caught.value.hint


def test_other_version_or_altered_file_in_node_modules_is_refused(
    libraries: dict[str, Path], tmp_path: Path
) -> None:
    library = pinned_libraries()[0]
    folder = tmp_path / library.name
    for file in library.file:
        copy = folder / file.source
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(libraries[file.target], copy)
    (folder / "package.json").write_text('{"version": "1.0.0"}')
    with pytest.raises(
        MissingExtraError, match=rf"has {library.name} 1\.0\.0; a page needs {library.version}"
    ):
        find_libraries(tmp_path)
    (folder / "package.json").write_text(json.dumps({"version": library.version}))
    (folder / library.file[0].source).write_bytes(b"/* mine */")
    with pytest.raises(MissingExtraError, match=r"ort\.wasm\.min\.mjs is not that of"):
        find_libraries(tmp_path)
