"""Files of keys and values: written as a whole, and refused unless they are exactly what was written."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtool_runtime import kv_file
from qtool_runtime.errors import KvFileError
from qtool_runtime.kv_cache import CacheLayout
from qtool_runtime.kv_file import Header

NAMES = tuple((f"past.{index}", f"present.{index}") for index in range(4))
LAYOUT = CacheLayout("in_place", NAMES, 2, 8, np.dtype(np.float32), "cpu")
MODEL = "a" * 64
CONTEXT = 64


def values_of(layout: CacheLayout, tokens: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    shape = (1, layout.heads, tokens, layout.head_dim)
    return tuple((100 * random.standard_normal(shape)).astype(layout.dtype) for _ in layout.names)


def save(path: Path, layout: CacheLayout = LAYOUT, count: int = 5, **changes: object) -> Header:
    """Writes a file of `count` tokens whose header says something else in `changes`."""
    header = Header.describing(MODEL, layout, count)
    header = replace(header, **changes)  # type: ignore[arg-type]
    kv_file.write(path, header, list(range(count)), values_of(layout, count))
    return header


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("kv") / "saved.kv"
    save(path, messages=({"role": "user", "content": "Grüße"},))
    return path.read_bytes()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, CONTEXT),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 9),
    dtype=st.sampled_from(["float32", "float16", "int8"]),
    text=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_what_is_written_is_read(
    tmp_path: Path, tokens: int, heads: int, head_dim: int, dtype: str, text: str
) -> None:
    layout = replace(LAYOUT, heads=heads, head_dim=head_dim, dtype=np.dtype(dtype))
    messages = kv_file.as_messages([{"role": "user", "content": text}])
    header = save(tmp_path / "a.kv", layout, tokens, messages=messages)
    for verify in (True, False):
        file = kv_file.read(tmp_path / "a.kv", MODEL, layout, CONTEXT, verify=verify)
        assert (file.header, file.token_ids) == (header, list(range(tokens)))
        for found, expected in zip(file.values, values_of(layout, tokens), strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype
    assert (tmp_path / "a.kv").stat().st_size == kv_file.file_bytes(header)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    save(tmp_path / "a.kv")
    save(tmp_path / "b.kv")
    assert (tmp_path / "a.kv").read_bytes() == (tmp_path / "b.kv").read_bytes()


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_refused(tmp_path: Path, saved: bytes, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "overwrite"]))
    place = data.draw(st.integers(0, len(saved) - 1))
    damaged = bytearray(saved)
    if kind == "flip":
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del damaged[place:]
    else:
        new = data.draw(st.binary(min_size=1, max_size=40))
        damaged[len(saved) if kind == "extend" else place : place + len(new)] = new
    path = tmp_path / "damaged.kv"
    path.write_bytes(damaged)
    if bytes(damaged) == saved:
        kv_file.read(path, MODEL, LAYOUT, CONTEXT)
        return
    with pytest.raises(KvFileError):
        kv_file.read(path, MODEL, LAYOUT, CONTEXT)


@given(st.binary(max_size=200))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_header_is_refused_or_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "random.kv"
    path.write_bytes(kv_file.MAGIC + struct.pack("<II", kv_file.VERSION, len(content)) + content)
    with pytest.raises(KvFileError):
        kv_file.read(path, MODEL, LAYOUT, CONTEXT)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "b" * 64}, "of another model: its digest is 'bbbb"),
        ({"dtype": "float16"}, "its dtype is 'float16' instead of 'float32'"),
        ({"dtype": "O"}, "its dtype is 'O' instead of 'float32'"),
        ({"tensors": 6}, "its tensors is 6 instead of 4"),
        ({"heads": 10**9}, "its heads is 1000000000 instead of 2"),
        ({"head_dim": -8}, "its head_dim is -8 instead of 8"),
        ({"tokens": 10**12}, "holds 1000000000000 tokens; valid: 1 to 64"),
        ({"tokens": 0}, "holds 0 tokens; valid: 1 to 64"),
        ({"tokens": -1}, "holds -1 tokens; valid: 1 to 64"),
        ({"tokens": 60}, "bytes instead of "),
        ({"tokens": 1.5}, "its header is malformed"),
        ({"messages": ("hello",)}, "its header is malformed"),
    ],
)
def test_the_error_names_what_differs(tmp_path: Path, changes: dict, reason: str) -> None:
    """Files that were made for this, with the right SHA-256 at their end."""
    path = tmp_path / "hostile.kv"
    save(path, **changes)
    with pytest.raises(KvFileError, match=reason):
        kv_file.read(path, MODEL, LAYOUT, CONTEXT)


def test_another_version_is_named(tmp_path: Path, saved: bytes) -> None:
    path = tmp_path / "new.kv"
    path.write_bytes(saved[:8] + struct.pack("<I", 2) + saved[12:])
    with pytest.raises(KvFileError, match="the format version 2; this runtime reads 1"):
        kv_file.read(path, MODEL, LAYOUT, CONTEXT)


def test_a_header_is_not_believed_to_be_longer_than_the_file(tmp_path: Path, saved: bytes) -> None:
    path = tmp_path / "long.kv"
    path.write_bytes(saved[:12] + struct.pack("<I", 2**32 - 1) + saved[16:])
    with pytest.raises(KvFileError, match="its header of 4294967295 bytes is longer"):
        kv_file.read(path, MODEL, LAYOUT, CONTEXT)


@pytest.mark.parametrize("content", [b"", b"qtool", b"GGUF" + bytes(100)])
def test_other_files_are_named_as_such(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(KvFileError, match="is not a file of keys and values"):
        kv_file.read(tmp_path / "x", MODEL, LAYOUT, CONTEXT)


def test_missing_files_and_folders_are_typed_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(KvFileError, match="cannot be read"):
            kv_file.read(path, MODEL, LAYOUT, CONTEXT)
    with pytest.raises(KvFileError, match="cannot be written"):
        save(tmp_path / "missing" / "a.kv")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.kv"
    save(path)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KvFileError, match="No space left"):
        save(path, count=9)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [object(), float("nan"), "half a pair \ud800", "x" * 9_000_000])
def test_messages_that_cannot_be_saved_are_refused(content: object) -> None:
    with pytest.raises(KvFileError, match="the messages"):
        kv_file.as_messages([{"role": "user", "content": content}])
