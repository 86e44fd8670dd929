"""A file of keys and values: what a model made of some tokens, to go on from there in another process.

In this order, all numbers little-endian:

- 8 bytes `qtoolkv` and a line feed, the format's version and the size of the header (uint32 each);
- the header: JSON (see `Header`) with spaces behind it, so that what follows starts at a multiple of 64;
- the token ids, int32;
- keys and values: for each cached tensor in the order of the graph, heads x tokens x head_dim numbers;
- the SHA-256 of everything before.

Keys and values mean something to the model alone that computed them, so the header names it by a digest of
its graph and weights. What a header claims is compared with the file's size before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qtool_runtime.errors import KvFileError
from qtool_runtime.kv_cache import CacheLayout, Snapshot
from qtool_runtime.records import from_data

MAGIC = b"qtoolkv\n"
VERSION = 1
MAXIMUM_HEADER_BYTES = 16 << 20
"""Room for a conversation of several million tokens."""

_PREFIX = struct.Struct("<8sII")
_ALIGNMENT = 64
_DIGEST_BYTES = hashlib.sha256().digest_size
_TOKEN = np.dtype("<i4")


@dataclass(frozen=True)
class Header:
    """What the file holds.

    Attributes:
        model: `Manifest.kv_digest` of the model that computed it.
        tokens: how many.
        dtype: of keys and values, such as "float32".
        tensors: cached tensors: keys and values of every layer.
        heads: key/value heads.
        head_dim: numbers per head and token.
        messages: the conversation that the tokens belong to; empty if they are of none.
    """

    model: str
    tokens: int
    dtype: str
    tensors: int
    heads: int
    head_dim: int
    messages: tuple[dict[str, Any], ...] = ()

    @classmethod
    def describing(cls, model: str, layout: CacheLayout, tokens: int) -> Header:
        """Returns the header for so many tokens of a model with this cache."""
        return cls(model, tokens, layout.dtype.name, len(layout.names), layout.heads, layout.head_dim)

    @property
    def data_bytes(self) -> int:
        """Bytes of token ids, keys and values."""
        numbers = self.tensors * self.heads * self.head_dim
        return self.tokens * (_TOKEN.itemsize + numbers * np.dtype(self.dtype).itemsize)


@dataclass(frozen=True)
class KvFile:
    """A file that was read. Keys and values stay in it: their pages come into memory when they are used."""

    header: Header
    token_ids: list[int]
    values: Snapshot


def file_bytes(header: Header) -> int:
    """Returns the size of the file with such a header."""
    return len(_encoded(header)) + header.data_bytes + _DIGEST_BYTES


def write(path: Path, header: Header, token_ids: Sequence[int], values: Snapshot) -> None:
    """Writes a file, which is there as a whole or not at all.

    Args:
        path: where to; a file that is there is replaced.
        header: what the rest is.
        token_ids: `header.tokens` of them.
        values: their keys and values.

    Raises:
        KvFileError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with partial.open("xb") as file:
            digest = hashlib.sha256()
            for data in _pieces(header, token_ids, values):
                digest.update(data)
                file.write(data)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise KvFileError(
            f"{path} cannot be written: {error.strerror or error}", hint="Choose another place."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def read(path: Path, model: str, layout: CacheLayout, context: int, *, verify: bool = True) -> KvFile:
    """Reads a file, after checks that cost nothing but its header.

    Args:
        path: the file.
        model: `Manifest.kv_digest` of the model that will go on.
        layout: its cached tensors.
        context: most tokens to accept.
        verify: also compare the SHA-256, which takes a pass over the file.

    Raises:
        KvFileError: it is missing, malformed, damaged, of another version or of another model.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _read_header(path, file, size)
            _check_header(path, header, Header.describing(model, layout, header.tokens), context)
            expected = start + header.data_bytes + _DIGEST_BYTES
            if size != expected:
                raise _damaged(path, f"it has {size} bytes instead of {expected}")
            if verify:
                _check_digest(path, file, size)
        data = np.memmap(path, np.uint8, "r", start, (header.data_bytes,))
    except OSError as error:
        raise KvFileError(f"{path} cannot be read: {error.strerror or error}") from error
    ids = header.tokens * _TOKEN.itemsize
    numbers = np.asarray(data[ids:]).view(layout.dtype)
    shape = (header.tensors, 1, header.heads, header.tokens, header.head_dim)
    return KvFile(header, data[:ids].view(_TOKEN).tolist(), tuple(numbers.reshape(shape)))


def _pieces(header: Header, token_ids: Sequence[int], values: Snapshot) -> Iterator[bytes]:
    """Yields the content up to the digest, a tensor at a time."""
    yield _encoded(header)
    yield np.array(token_ids, _TOKEN).tobytes()
    for tensor in values:
        yield tensor.tobytes()


def _encoded(header: Header) -> bytes:
    """Returns everything before the token ids."""
    text = json.dumps(asdict(header), sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    padded = text + b" " * (-(_PREFIX.size + len(text)) % _ALIGNMENT)
    return _PREFIX.pack(MAGIC, VERSION, len(padded)) + padded


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[Header, int]:
    """Returns the header, and where the token ids start."""
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or not prefix.startswith(MAGIC):
        raise KvFileError(f"{path} is not a file of keys and values: it does not start with {MAGIC!r}")
    _, version, length = _PREFIX.unpack(prefix)
    if version != VERSION:
        raise KvFileError(
            f"{path} has the format version {version}; this runtime reads {VERSION}",
            hint="Save it again with this version.",
        )
    if length > min(MAXIMUM_HEADER_BYTES, size - _PREFIX.size):
        raise _damaged(path, f"its header of {length} bytes is longer than the file, or than any header")
    try:
        header = from_data(Header, json.loads(file.read(length)))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is malformed: {error}") from error
    return header, _PREFIX.size + length


def _check_header(path: Path, header: Header, expected: Header, context: int) -> None:
    """Compares a header with one for as many tokens of the model in use."""
    if header.model != expected.model:
        raise KvFileError(
            f"{path} is of another model: its digest is {header.model!r:.70}, here it is {expected.model!r}",
            hint="Use it with the artifact and the provider that it was saved with, or save it again.",
        )
    found, wanted = asdict(header), asdict(expected)
    for name in ("dtype", "tensors", "heads", "head_dim"):
        if found[name] != wanted[name]:
            raise _damaged(path, f"its {name} is {found[name]!r:.70} instead of {wanted[name]!r}")
    if not 1 <= header.tokens <= context:
        raise KvFileError(
            f"{path} holds {header.tokens} tokens; valid: 1 to {context}, the context",
            hint="Load the model with a longer context.",
        )


def _check_digest(path: Path, file: BinaryIO, size: int) -> None:
    file.seek(0)
    digest, left = hashlib.sha256(), size - _DIGEST_BYTES
    while left and (chunk := file.read(min(left, 1 << 20))):
        digest.update(chunk)
        left -= len(chunk)
    if file.read() != digest.digest():
        raise _damaged(path, "its content does not have the SHA-256 at its end")


def _damaged(path: Path, reason: str) -> KvFileError:
    return KvFileError(f"{path} is damaged: {reason}", hint="Delete it; it has to be saved again.")


def as_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Returns a conversation in the form that a header holds.

    Raises:
        KvFileError: it holds something that JSON does not have.
    """
    try:
        text = json.dumps(list(messages), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise KvFileError(f"the messages cannot be saved: {error}", hint="Use plain data only.") from error
    if len(text) > MAXIMUM_HEADER_BYTES // 2:
        raise KvFileError(
            f"the messages have {len(text)} bytes; at most {MAXIMUM_HEADER_BYTES // 2} are saved"
        )
    return tuple(json.loads(text))
