"""Another implementation for some operators of a graph: their domain is changed in the model file's bytes.

A model file is a protocol buffer (https://protobuf.dev/programming-guides/encoding), laid out as onnx.proto
says. Only what leads to a node's domain is looked at, so that the runtime does not need the onnx package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qtool_runtime.errors import ArtifactError

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Kinds of fields; the remaining two are obsolete, and in no ONNX file."""

MODEL_GRAPH, MODEL_OPSET_IMPORT = 7, 8
GRAPH_NODE = 1
NODE_OP_TYPE, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_INT = 1, 3
OPSET_DOMAIN, OPSET_VERSION = 1, 2
"""Numbers of fields in onnx.proto, for the messages of these names."""

Moves = Callable[[str, str, dict[str, int]], bool]
"""Whether a node of a domain and operator, with these integer attributes, is to be moved."""


def move_operators(model: bytes, domain: str, moves: Moves) -> tuple[bytes, int]:
    """Gives some nodes of the main graph another domain.

    Args:
        model: a serialized `ModelProto`.
        domain: the new domain; its version 1 is imported.
        moves: which nodes.

    Returns:
        The changed model, and how many nodes were moved.

    Raises:
        ArtifactError: the bytes are not a model.
    """
    pieces, moved = [], 0
    for number, field, payload in _fields(memoryview(model)):
        if number == MODEL_GRAPH:
            graph, count = _move_nodes(payload, domain, moves)
            pieces.append(_message(MODEL_GRAPH, graph))
            moved += count
        else:
            pieces.append(bytes(field))
    opset = _message(OPSET_DOMAIN, domain.encode()) + _varint(OPSET_VERSION << 3 | VARINT) + _varint(1)
    return b"".join([*pieces, _message(MODEL_OPSET_IMPORT, opset)]), moved


def _move_nodes(graph: memoryview, domain: str, moves: Moves) -> tuple[bytes, int]:
    pieces, moved = [], 0
    # Of a field that is there twice, the last one counts.
    new_domain = _message(NODE_DOMAIN, domain.encode())
    for number, field, payload in _fields(graph):
        if number == GRAPH_NODE and moves(*_describe(payload)):
            pieces.append(_message(GRAPH_NODE, bytes(payload) + new_domain))
            moved += 1
        else:
            pieces.append(bytes(field))
    return b"".join(pieces), moved


def _describe(node: memoryview) -> tuple[str, str, dict[str, int]]:
    """Returns a node's domain, operator and integer attributes."""
    domain = operator = ""
    attributes: dict[str, int] = {}
    for number, _, payload in _fields(node):
        if number == NODE_DOMAIN:
            domain = _text(payload)
        elif number == NODE_OP_TYPE:
            operator = _text(payload)
        elif number == NODE_ATTRIBUTE:
            values = {key: value for key, _, value in _fields(payload)}
            if ATTRIBUTE_INT in values:
                name = _text(values.get(ATTRIBUTE_NAME, memoryview(b"")))
                value, _ = _read_varint(values[ATTRIBUTE_INT], 0)
                attributes[name] = value - (1 << 64) if value >= 1 << 63 else value  # int64
    return domain, operator, attributes


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yields each field's number, its bytes with the tag, and its payload alone.

    Raises:
        ArtifactError: a field is of an unknown kind, or reaches beyond the message.
    """
    position = 0
    while position < len(message):
        start = position
        tag, position = _read_varint(message, position)
        kind, size = tag & 7, 0
        if kind == VARINT:
            _, end = _read_varint(message, position)
            size = end - position
        elif kind == LENGTH_DELIMITED:
            size, position = _read_varint(message, position)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise _malformed()
        end = position + size
        if end > len(message):
            raise _malformed()
        yield tag >> 3, message[start:end], message[position:end]
        position = end


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Returns the number that begins at a position, and where it ends."""
    value = 0
    for count in range(10):
        if position + count >= len(data):
            break
        byte = data[position + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, position + count + 1
    raise _malformed()


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _message(number: int, payload: bytes) -> bytes:
    """Returns a field whose payload has a length."""
    return _varint(number << 3 | LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _text(payload: memoryview) -> str:
    try:
        return str(payload, "utf-8")
    except UnicodeDecodeError:
        raise _malformed() from None


def _malformed() -> ArtifactError:
    return ArtifactError("the model file is not an ONNX model", hint="Build the artifact again.")
