"""GGUF headers written byte by byte: what the format allows, and what nobody should be able to do."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from qtool.checkpoint.files import SourceFile
from qtool.checkpoint.gguf_array import GgufArray
from qtool.checkpoint.gguf_header import MAX_HEADER_BYTES, GgufHeader, read_header
from qtool.errors import SourceError

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
TYPE_F32, TYPE_Q8_0 = 0, 8


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(key: str, kind: int, count: int, elements: bytes) -> bytes:
    return entry(key, ARRAY, struct.pack("<IQ", kind, count) + elements)


def tensor(name: str = "x", sizes: tuple[int, ...] = (8,), kind: int = TYPE_F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def write(
    path: Path,
    metadata: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: bytes = b"",
    alignment: int = 32,
) -> Path:
    tensor_count, metadata_count = counts or (len(tensors), len(metadata))
    head = magic + struct.pack("<IQQ", version, tensor_count, metadata_count)
    head += b"".join(metadata) + b"".join(tensors)
    path.write_bytes(head + b"\0" * (-len(head) % alignment) + data)
    return path


def read(path: Path) -> GgufHeader:
    return read_header(SourceFile.at(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.gguf"


@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_value(path: Path, version: int) -> None:
    layouts = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
    entries = [entry(f"k{kind}", kind, struct.pack(layout, 77)) for kind, layout in layouts.items()]
    entries += [
        entry("single", F32, struct.pack("<f", 1e-6)),
        entry("double", 12, struct.pack("<d", 0.1)),
        entry("yes", BOOL, b"\1"),
        entry("word", STRING, text("héllo")),
        array("words", STRING, 3, text("") + text("你好") + text("x")),
        array("numbers", 5, 2, struct.pack("<ii", -1, 5)),
        array("none", STRING, 0, b""),
    ]
    found = read(write(path, tuple(entries), version=version)).metadata
    assert [found[f"k{kind}"] for kind in layouts] == [77] * len(layouts)
    assert (found["single"], found["double"], found["yes"], found["word"]) == (1e-06, 0.1, True, "héllo")
    words, numbers, none = (found[key] for key in ("words", "numbers", "none"))
    assert isinstance(words, GgufArray) and isinstance(numbers, GgufArray) and isinstance(none, GgufArray)
    assert words.strings() == ["", "你好", "x"]
    assert words.strings_at([0, 2]) == ["", "x"]
    assert words.strings_at([]) == []
    assert words.text_bytes == 7
    assert numbers.integers().tolist() == [-1, 5]
    assert none.strings() == []


def test_strings_that_lie_across_chunks(path: Path) -> None:
    """Arrays are stepped over in chunks of 2 MB; here strings begin, end and are cut at every place."""
    random = np.random.default_rng(0)
    strings = ["x" * int(length) for length in random.integers(0, 40, 120_000)] + ["y" * 5_000_000, "end"]
    content = b"".join(map(text, strings))
    after = entry("after", U32, struct.pack("<I", 5))
    header = read(
        write(path, (array("words", STRING, len(strings), content), after), (tensor(),), data=bytes(32))
    )
    words = header.metadata["words"]
    assert isinstance(words, GgufArray)
    assert words.strings() == strings
    assert words.strings_at([0, 100_000, len(strings) - 1]) == [strings[0], strings[100_000], "end"]
    assert header.metadata["after"] == 5


@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_tensors_are_found_at_any_alignment(path: Path, alignment: int) -> None:
    step = -(-36 // alignment) * alignment
    data = np.arange(9, dtype="<f4").tobytes().ljust(step, b"\0") + np.arange(4, dtype="<f4").tobytes()
    metadata = (entry("general.alignment", U32, struct.pack("<I", alignment)),)
    tensors = (tensor("a", (9,)), tensor("b", (2, 2), offset=step))
    header = read(write(path, metadata, tensors, data=data, alignment=alignment))
    assert header.tensors["b"].shape == (2, 2)
    for name, values in {"a": np.arange(9), "b": np.arange(4)}.items():
        found = header.tensors[name]
        raw = header.file.read(found.offset, found.size)
        np.testing.assert_array_equal(np.frombuffer(raw, "<f4"), values)


def test_the_gguf_package_reads_the_same(path: Path) -> None:
    """So that the writer of these tests, byte by byte, is known to write what the format means."""
    metadata = (
        entry("general.architecture", STRING, text("qwen2")),
        entry("a", U64, struct.pack("<Q", 2**40)),
    )
    tensors = (tensor("a", (32, 3), TYPE_Q8_0), tensor("b", (8,), offset=128))
    write(path, metadata, tensors, data=bytes(160))
    ours, theirs = read(path), gguf.GGUFReader(path)
    assert ours.metadata["a"] == theirs.fields["a"].contents() == 2**40
    for found, expected in zip(ours.tensors.values(), theirs.tensors, strict=True):
        assert (found.name, found.offset, found.size) == (
            expected.name,
            expected.data_offset,
            expected.n_bytes,
        )
        assert found.shape == tuple(int(size) for size in reversed(expected.shape))


OK = entry("a", U32, bytes(4))
DAMAGED: list[tuple[str, dict[str, Any], str]] = [
    ("magic", {"magic": b"GGML"}, "not a GGUF file"),
    ("version 1", {"version": 1}, "version 1 are not supported"),
    ("version 4", {"version": 4}, "version 4 are not supported"),
    ("big-endian", {"version": 3 << 24}, "big-endian"),
    ("many tensors", {"counts": (2**64 - 1, 0)}, "announces 18446744073709551615 tensors"),
    ("many entries", {"counts": (0, 2**63)}, "metadata entries"),
    ("more entries than bytes", {"counts": (0, 5000), "data": bytes(1000)}, "announces 5000 metadata"),
    ("long key", {"metadata": (struct.pack("<Q", 2**62), OK), "counts": (0, 1)}, "announces 46116860184273"),
    (
        "key not UTF-8",
        {"metadata": (entry(b"\xff", U32, bytes(4)),)},
        "metadata key in the header is not UTF-8",
    ),
    ("value not UTF-8", {"metadata": (entry("a", STRING, text(b"\xff")),)}, "'a' in the header is not UTF-8"),
    ("key twice", {"metadata": (OK, OK)}, "'a' is there twice"),
    ("unknown kind", {"metadata": (entry("a", 13, bytes(4)),)}, "unknown value type 13"),
    ("nested array", {"metadata": (array("a", ARRAY, 1, bytes(20)),)}, "'a' is an array of the type 9"),
    ("long array", {"metadata": (array("a", U32, 2**61, bytes(8)),)}, "elements of 'a'"),
    ("many strings", {"metadata": (array("a", STRING, 2**40, bytes(8)),)}, "elements of 'a'"),
    ("long string", {"metadata": (array("a", STRING, 1, struct.pack("<Q", 2**64 - 1)),)}, "announces"),
    (
        "strings to the end",
        {"metadata": (array("a", STRING, 2, text("x") + bytes(7)),)},
        "announces 17 bytes",
    ),
    ("alignment 0", {"metadata": (entry("general.alignment", U32, bytes(4)),)}, "powers of two"),
    ("alignment 24", {"metadata": (entry("general.alignment", U32, b"\x18\0\0\0"),)}, "powers of two"),
    ("alignment 2^30", {"metadata": (entry("general.alignment", U32, b"\0\0\0\x40"),)}, "powers of two"),
    ("alignment true", {"metadata": (entry("general.alignment", BOOL, b"\1"),)}, "powers of two"),
    ("alignment text", {"metadata": (entry("general.alignment", STRING, text("32")),)}, "powers of two"),
    ("no dimensions", {"tensors": (tensor(sizes=()),)}, "0 dimensions"),
    ("five dimensions", {"tensors": (tensor(sizes=(1,) * 5),)}, "5 dimensions"),
    ("size 0", {"tensors": (tensor(sizes=(0, 4)),)}, "positive sizes"),
    ("part of a block", {"tensors": (tensor(sizes=(33,), kind=TYPE_Q8_0),)}, "multiple of 32"),
    ("unknown type", {"tensors": (tensor(kind=200),)}, "unknown type 200; known are 0 "),
    ("removed type", {"tensors": (tensor(kind=4),)}, "unknown type 4"),
    ("huge tensor", {"tensors": (tensor(sizes=(2**62, 2**62)),), "data": bytes(32)}, "ends at byte"),
    ("truncated data", {"tensors": (tensor(),), "data": bytes(31)}, "ends at byte"),
    ("offset outside", {"tensors": (tensor(offset=2**40),), "data": bytes(32)}, "placed at 1099511627776"),
    ("offset not aligned", {"tensors": (tensor(offset=4),), "data": bytes(64)}, "placed at 4"),
    (
        "overlap",
        {"tensors": (tensor("a"), tensor("b")), "data": bytes(64)},
        "'b' is placed at 0; .* comes 32",
    ),
    ("name twice", {"tensors": (tensor(), tensor(offset=32)), "data": bytes(64)}, "'x' is there twice"),
]


@pytest.mark.parametrize(
    ("content", "message"), [case[1:] for case in DAMAGED], ids=[case[0] for case in DAMAGED]
)
def test_damaged_headers_are_refused_without_allocating(
    path: Path, content: dict[str, Any], message: str, peak_bytes: Callable[[], int]
) -> None:
    # Without padding after the header, so that a length that is too long does reach past the end.
    write(path, **({"alignment": 1} | content))
    with pytest.raises(SourceError, match=message) as caught:
        read(path)
    assert caught.value.hint
    assert peak_bytes() < 1_000_000


@pytest.mark.parametrize("content", [b"", b"GG", b"GGUF", b"GGUF\3\0\0\0", b"GGUF\3\0\0\0" + bytes(15)])
def test_files_that_end_in_the_first_fields(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(SourceError):
        read(path)


def test_a_header_over_the_limit_is_refused(path: Path, peak_bytes: Callable[[], int]) -> None:
    """A sparse file, in which one string announces more than the limit, and the file has as much."""
    write(path, (text("a") + struct.pack("<IQ", STRING, MAX_HEADER_BYTES),), counts=(0, 1))
    with path.open("ab") as stream:
        stream.truncate(MAX_HEADER_BYTES * 2)
    with pytest.raises(SourceError, match=str(MAX_HEADER_BYTES)):
        read(path)
    assert peak_bytes() < 8 * 2**20


def test_what_an_array_is_not(path: Path) -> None:
    header = read(write(path, (array("a", U32, 1, bytes(4)), array("b", STRING, 1, text("x")))))
    numbers, words = header.metadata["a"], header.metadata["b"]
    assert isinstance(numbers, GgufArray) and isinstance(words, GgufArray)
    for wrong in (numbers.strings, lambda: numbers.strings_at([0]), words.integers):
        with pytest.raises(SourceError, match="must be an array of"):
            wrong()
