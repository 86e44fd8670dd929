"""Safetensors files: the values of the reference library, and headers nobody can trust."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qtool.checkpoint.files import SourceFile
from qtool.checkpoint.safetensors_file import MAX_HEADER_BYTES, StoredTensor, read_tensors
from qtool.errors import SourceError
from support.tiny import write_tiny_checkpoint


def read(path: Path) -> dict[str, StoredTensor]:
    return read_tensors(SourceFile.at(path))


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_are_those_that_the_reference_library_wrote(tmp_path: Path, dtype: type) -> None:
    random = np.random.default_rng(3)
    tensors = {
        "matrix": random.standard_normal((37, 12)).astype(dtype),
        "vector": random.standard_normal(9).astype(dtype),
        "cube": random.standard_normal((4, 3, 5)).astype(dtype),
        "empty": np.zeros((0, 4), dtype),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "np"})
    found = read(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        weight = found[name].weight()
        assert weight.shape == values.shape
        assert weight.read_all().dtype == np.float32
        np.testing.assert_array_equal(weight.read_all(), values.astype(np.float32))
        if len(values):
            np.testing.assert_array_equal(weight.read(1, 3), values[1:3].astype(np.float32))
            np.testing.assert_array_equal(weight.read(2, 2), values[2:2].astype(np.float32))


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    """All 65,536 values, against the definition: a bfloat16 is the upper half of a float32."""
    every = np.arange(65536, dtype="<u2")
    write(tmp_path / "a", {"x": entry("BF16", (256, 256), (0, 131072))}, every.tobytes())
    expected = b"".join(b"\0\0" + struct.pack("<H", value) for value in range(65536))
    rows = read(tmp_path / "a")["x"].read
    finite = [row for row in range(256) if row not in (0x7F, 0xFF)]  # in these, infinities and NaN start
    assert b"".join(rows(row, row + 1).tobytes() for row in finite) == b"".join(
        expected[row * 1024 : row * 1024 + 1024] for row in finite
    )
    for row in (0x7F, 0xFF):
        with pytest.raises(SourceError, match="infinite or not a number"):
            rows(row, row + 1)


def test_the_reference_library_reads_what_the_test_support_writes(tmp_path: Path) -> None:
    """So that comparing our reader with our writer means something."""
    tiny = write_tiny_checkpoint(tmp_path, architecture="qwen3", dtype="F16", tied=False)
    reference = load_file(tmp_path / "model.safetensors")
    assert reference.keys() == tiny.tensors.keys()
    for name, values in reference.items():
        np.testing.assert_array_equal(values.astype(np.float32), tiny.tensors[name])


def test_threads_read_at_once(tmp_path: Path) -> None:
    values = np.arange(400_000, dtype=np.float32).reshape(1000, 400)
    save_file({"x": values}, tmp_path / "a")
    weight = read(tmp_path / "a")["x"].weight()
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: weight.read(start, start + 10), range(0, 1000, 10)))
    np.testing.assert_array_equal(np.concatenate(parts), values)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 38), (3, 2)])
def test_rows_outside_the_tensor_are_a_programming_error(tmp_path: Path, start: int, stop: int) -> None:
    save_file({"x": np.zeros((37, 2), np.float32)}, tmp_path / "a")
    with pytest.raises(IndexError):
        read(tmp_path / "a")["x"].read(start, stop)


def test_a_file_that_changes_after_opening_is_noticed(tmp_path: Path) -> None:
    save_file({"x": np.zeros((4, 2), np.float32)}, tmp_path / "a")
    tensor = read(tmp_path / "a")["x"]
    with (tmp_path / "a").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(SourceError, match="changed while"):
        tensor.read(0, 1)
    with pytest.raises(SourceError, match="changed while"):
        tensor.file.sha256()


HEADERS: list[tuple[str, Any, bytes, str]] = [
    ("gap at the start", {"x": entry(offsets=(4, 12))}, bytes(12), "hole"),
    ("gap between", {"x": entry(), "y": entry(offsets=(12, 20))}, bytes(20), "hole"),
    ("overlap", {"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12), "overlaps"),
    ("same place", {"x": entry(), "y": entry()}, bytes(8), "overlaps"),
    ("truncated", {"x": entry()}, bytes(7), "8 bytes, but 7 follow"),
    ("bytes after the last tensor", {"x": entry()}, bytes(9), "8 bytes, but 9 follow"),
    ("no tensors but data", {}, bytes(8), "0 bytes, but 8 follow"),
    ("too few bytes for the shape", {"x": entry(shape=(3,))}, bytes(8), "8 bytes, but F32"),
    ("end before begin", {"x": entry(offsets=(8, 0))}, bytes(8), "-8 bytes"),
    ("negative offset", {"x": entry(offsets=(-8, 0))}, bytes(8), "data_offsets"),
    ("three offsets", {"x": entry(offsets=(0, 4, 8))}, bytes(8), "data_offsets"),
    ("huge offset", {"x": entry(offsets=(0, 2**70))}, bytes(8), "data_offsets"),
    ("boolean offset", {"x": entry(shape=(), offsets=(False, 4))}, bytes(4), "data_offsets"),
    ("fractional size", {"x": entry(shape=(2.0,))}, bytes(8), "shape"),
    ("negative size", {"x": entry(shape=(-2,))}, bytes(8), "shape"),
    ("overflowing shape", {"x": entry(shape=(2**62, 2**62, 0), offsets=(0, 8))}, bytes(8), "needs 0"),
    ("shape that wraps around", {"x": entry(shape=(2**32, 2**32, 2), offsets=(0, 0))}, b"", "needs"),
    ("many dimensions", {"x": entry(shape=(1,) * 99)}, bytes(8), "shape"),
    ("shape is a string", {"x": {**entry(), "shape": "2"}}, bytes(8), "shape"),
    ("unknown dtype", {"x": entry("F31")}, bytes(8), "F31"),
    ("dtype is a list", {"x": {**entry(), "dtype": ["F32"]}}, bytes(8), "dtype"),
    ("entry without dtype", {"x": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8), "exactly"),
    ("entry is a number", {"x": 5}, bytes(8), "exactly"),
    ("header is a list", [], b"", "must hold a JSON object"),
    ("header is not JSON", b"{nonsense", b"", "not valid JSON"),
    ("header is not UTF-8", b'{"\xff\xfe": 1}', b"", "not valid JSON"),
    ("header is empty", b"", b"", "not valid JSON"),
    ("a name twice", b'{"x": 1, "x": 1}', b"", "twice"),
    ("not a number", b'{"x": NaN}', b"", "NaN"),
    ("deep nesting", b'{"x":' + b"[" * 200_000, b"", "nested too deeply"),
    ("long number", b'{"x":' + b"9" * 10_000 + b"}", b"", "not valid JSON"),
]


@pytest.mark.parametrize(
    ("header", "data", "message"), [case[1:] for case in HEADERS], ids=[c[0] for c in HEADERS]
)
def test_malformed_headers_are_refused(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(write(tmp_path / "a", header, data))


@pytest.mark.parametrize("length", [2, 1000, MAX_HEADER_BYTES + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_length_is_checked_before_anything_is_allocated(
    tmp_path: Path, length: int, peak_bytes: Callable[[], int]
) -> None:
    with pytest.raises(SourceError):
        read(write(tmp_path / "a", b"{}" if length > 2 else b"{", b"", length))
    assert peak_bytes() < 1_000_000


def test_a_header_over_the_limit_is_refused_although_the_file_has_it(
    tmp_path: Path, peak_bytes: Callable[[], int]
) -> None:
    with (tmp_path / "a").open("wb") as stream:  # sparse: takes no space
        stream.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        stream.truncate(MAX_HEADER_BYTES + 1000)
    with pytest.raises(SourceError, match=str(MAX_HEADER_BYTES)):
        read(tmp_path / "a")
    assert peak_bytes() < 1_000_000


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"version https://git-lfs.github.com/spec/v1\n"])
def test_other_files_are_not_safetensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(SourceError, match=r"not a (whole )?safetensors file"):
        read(tmp_path / "a")
