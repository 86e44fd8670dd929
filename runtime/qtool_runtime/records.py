"""Strict conversion of parsed JSON into frozen dataclasses.

Small on purpose: it knows the types that the manifest uses, and refuses everything else, unknown keys too.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from typing import Any, TypeVar

Record = TypeVar("Record")


class RecordError(ValueError):
    """The data does not have the record's form; the text says where and why."""


def from_data(record: type[Record], data: Any) -> Record:
    """Builds `record` from `data`, checking every field's type.

    Args:
        record: a dataclass whose fields are str, int, float, bool, dict, tuple[X, ...], dict[str, X],
            X | None, or such dataclasses.
        data: parsed JSON.

    Raises:
        RecordError: a key is missing or unknown, or a value has another type.
    """
    return typing.cast(Record, _value(record, data, "document"))


def _value(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, data, where)
    if origin is types.UnionType:
        return None if data is None else _value(arguments[0], data, where)
    if (origin is tuple and isinstance(data, list)) or (origin is dict and isinstance(data, dict)):
        return _collection(arguments, data, where)
    if kind is float and type(data) in (int, float) and -sys.float_info.max <= data <= sys.float_info.max:
        return float(data)
    if kind in (str, int, bool) and type(data) is kind:
        return data
    name = getattr(kind, "__name__", str(kind))
    raise RecordError(f"{where} should be {name}, found {data!r:.80}")


def _collection(arguments: tuple[Any, ...], data: Any, where: str) -> Any:
    if isinstance(data, list):
        return tuple(_value(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(data))
    if arguments[1] is Any:
        return data
    return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in data.items()}


def _record(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise RecordError(f"{where} should be an object, found {data!r:.80}")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(data.keys() - hints.keys()):
        raise RecordError(f"{where} has the unknown key {unknown[0]!r}")
    if missing := sorted(hints.keys() - data.keys()):
        raise RecordError(f"{where} lacks the key {missing[0]!r}")
    return kind(**{key: _value(hint, data[key], f"{where}.{key}") for key, hint in hints.items()})
