"""Typed access to the metadata of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping

from qtool.checkpoint.files import shown
from qtool.checkpoint.gguf_array import GgufArray
from qtool.checkpoint.gguf_header import GgufValue
from qtool.errors import SourceError

HINT = "convert the model again with a current convert_hf_to_gguf.py, or download another conversion"


def integer(metadata: Mapping[str, GgufValue], key: str, default: int | None = None, least: int = 1) -> int:
    """Returns a whole number of at least `least` (a boolean is not one)."""
    value = metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise _wrong(key, value, f"a whole number from {least} to 2147483647")
    return value


def number(metadata: Mapping[str, GgufValue], key: str) -> float:
    """Returns a positive number."""
    value = metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise _wrong(key, value, "a positive number")
    return float(value)


def text(metadata: Mapping[str, GgufValue], key: str, default: str | None = None) -> str:
    """Returns a string."""
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise _wrong(key, value, "a string")
    return value


def array(metadata: Mapping[str, GgufValue], key: str) -> GgufArray:
    """Returns an array, which is still in the file."""
    value = metadata.get(key)
    if not isinstance(value, GgufArray):
        raise _wrong(key, value, "an array")
    return value


def _wrong(key: str, value: object, valid: str) -> SourceError:
    if isinstance(value, GgufArray):
        value = f"an array of {value.count}"
    found = "is missing" if value is None else f"is {shown(value)}"
    return SourceError(f"the metadata {key} {found}; it must be {valid}", hint=HINT)
