"""The manifest refuses what is not one, even if its own digest is right."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtool_runtime import manifest
from qtool_runtime.errors import ArtifactError

DELETE = object()


def write(folder: Path, document: Any) -> Path:
    """Writes JSON as the compiler would, digest included."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if isinstance(document, dict):
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        signed = document | {manifest.DIGEST_KEY: digest}
        text = json.dumps(signed, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / manifest.FILE_NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
    return folder


@pytest.fixture(scope="module")
def document(artifact: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((artifact / manifest.FILE_NAME).read_text("utf-8"))
    del data[manifest.DIGEST_KEY]
    return data


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the document with the value at "a.0.b" replaced, added or deleted."""
    result = copy.deepcopy(document)
    place: Any = result
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in parents:
        place = place[part]
    if value is DELETE:
        del place[last]
    else:
        place[last] = value
    return result


def test_unchanged_copy_is_read(tmp_path: Path, document: dict[str, Any]) -> None:
    assert manifest.read(write(tmp_path, document)).context == 128


REFUSED: dict[str, tuple[str, Any, str]] = {
    "missing key": ("graph.provider", DELETE, "lacks the key 'provider'"),
    "missing top key": ("context", DELETE, "lacks the key 'context'"),
    "unknown key": ("graph.shell", "rm", "unknown key 'shell'"),
    "unknown top key": ("extra", 1, "unknown key 'extra'"),
    "text for a count": ("context", "128", r"document\.context should be int, found '128'"),
    "float for a count": ("context", 128.0, "context should be int"),
    "bool for a count": ("context", True, "context should be int, found True"),
    "count for a bool": ("generation.do_sample", 1, "do_sample should be bool"),
    "null": ("name", None, "name should be str, found None"),
    "text for a list": ("files", "model.onnx", "files should be tuple"),
    "list for a record": ("graph", [], "graph should be an object"),
    "item of a list": ("files.0.size", "1", r"files\[0\]\.size should be int"),
    "item of a table": ("operators.0.operators", {"MatMul": []}, r"operators\.MatMul should be int"),
    "too large for a float": ("generation.top_p", 10**400, "top_p should be float"),
    "infinity": ("generation.top_p", float("inf"), "top_p should be float"),
    "not a number": ("generation.top_p", float("nan"), "top_p should be float"),
    "other version": ("format_version", 2, "format version 2; this runtime reads 1"),
    "text version": ("format_version", "1", "format version '1'"),
    "zero context": ("context", 0, "context is 0; valid: 1 to"),
    "huge context": ("context", 10**12, "context is 1000000000000"),
    "huge layers": ("kv_cache.layers", 10**12, "layers is 1000000000000"),
    "negative heads": ("kv_cache.num_key_value_heads", -2, "num_key_value_heads is -2"),
    "parent": ("files.0.path", "../model.onnx", "not inside the artifact"),
    "inner parent": ("files.0.path", "a/../../model.onnx", "not inside the artifact"),
    "absolute": ("files.0.path", "/etc/passwd", "not inside the artifact"),
    "drive": ("files.0.path", "C:model.onnx", "not inside the artifact"),
    "backslash": ("files.0.path", "..\\model.onnx", "not inside the artifact"),
    "nul": ("files.0.path", "model\0.onnx", "not inside the artifact"),
    "empty path": ("files.0.path", "", "not inside the artifact"),
    "dot": ("files.0.path", ".", "not inside the artifact"),
    "graph elsewhere": ("graph.file", "../../model.onnx", "is not among its files"),
    "half a surrogate pair": ("name", "\ud800", "cannot be read|malformed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_documents_are_refused(tmp_path: Path, document: dict[str, Any], name: str) -> None:
    path, value, message = REFUSED[name]
    with pytest.raises(ArtifactError, match=message):
        manifest.read(write(tmp_path, changed(document, path, value)))


def test_another_kind_of_manifest_is_told_from_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema_version": 1, "model_name": "nano"}')
    with pytest.raises(ArtifactError, match="is not the manifest of an artifact") as caught:
        manifest.read(tmp_path)
    assert "model package" in caught.value.hint


def test_a_file_may_be_named_once(tmp_path: Path, document: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="twice"):
        manifest.read(write(tmp_path, changed(document, "files", document["files"] * 2)))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b'{"format_version": 1}'],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / manifest.FILE_NAME).write_bytes(content)
    with pytest.raises(ArtifactError):
        manifest.read(tmp_path)


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / manifest.FILE_NAME).open("wb") as file:
        file.truncate(manifest.MAXIMUM_BYTES + 1)  # sparse
    with pytest.raises(ArtifactError, match="a manifest has at most"):
        manifest.read(tmp_path)


def test_folders_without_a_manifest_are_no_artifacts(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match="is not an artifact") as caught:
            manifest.read(path)
        assert "qtool build" in caught.value.hint


def places(document: Any, prefix: str = "") -> list[str]:
    """Paths of all values in the document."""
    items = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    return [path for key, value in items for path in (f"{prefix}{key}", *places(value, f"{prefix}{key}."))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_change_gives_a_manifest_or_an_artifact_error(
    tmp_path: Path, document: dict[str, Any], data
) -> None:
    path = data.draw(st.sampled_from(places(document)))
    write(tmp_path, changed(document, path, data.draw(JSON)))
    try:
        manifest.read(tmp_path)
    except ArtifactError as error:
        assert error.message
