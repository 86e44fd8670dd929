"""The nodes of a model file: read, and written back after some of them were replaced.

A model file is a protocol buffer (https://protobuf.dev/programming-guides/encoding), laid out as onnx.proto
says. Only what leads to the nodes is looked at, so that the runtime does not need the onnx package.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qtool_runtime.errors import ArtifactError

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Kinds of fields; the remaining two are obsolete, and in no ONNX file."""

MODEL_GRAPH, MODEL_OPSET_IMPORT = 7, 8
GRAPH_NODE, GRAPH_OUTPUT = 1, 12
VALUE_NAME = 1
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OP_TYPE, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 3, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_FLOAT, ATTRIBUTE_INT = 1, 2, 3
ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS, ATTRIBUTE_TYPE = 6, 11, 20
OPSET_DOMAIN, OPSET_VERSION = 1, 2
"""Numbers of fields in onnx.proto, for the messages of these names."""

TYPE_FLOAT, TYPE_INT = 1, 2
"""Values of AttributeProto.type."""

Number = int | float


@dataclass(frozen=True)
class Node:
    """A node of the main graph.

    Attributes:
        domain: "" for ONNX's own operators.
        operator: its type.
        inputs: names of values, "" for those that are left out.
        outputs: likewise.
        attributes: those that are integers or floats.
        has_graph: whether an attribute is a graph, which may use any value without its being an input.
        serialized: the bytes of the `NodeProto`; empty for a node that was made here.
    """

    domain: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Number] = field(default_factory=dict)
    has_graph: bool = False
    serialized: bytes = b""

    def moved(self, domain: str) -> Node:
        """Returns the node in another domain. Of a field that is there twice, the last one counts."""
        serialized = self.serialized and self.serialized + _message(NODE_DOMAIN, domain.encode())
        return replace(self, domain=domain, serialized=serialized)

    def serialize(self) -> bytes:
        """Returns the `NodeProto`."""
        if self.serialized:
            return self.serialized
        pieces = [_message(NODE_INPUT, name.encode()) for name in self.inputs]
        pieces += [_message(NODE_OUTPUT, name.encode()) for name in self.outputs]
        pieces.append(_message(NODE_OP_TYPE, self.operator.encode()))
        pieces += [_message(NODE_ATTRIBUTE, _attribute(*item)) for item in self.attributes.items()]
        pieces.append(_message(NODE_DOMAIN, self.domain.encode()))
        return b"".join(pieces)


@dataclass(frozen=True)
class ModelFile:
    """A model file whose nodes are known.

    Attributes:
        nodes: of the main graph, in the file's order.
        outputs: names of the graph's outputs.
    """

    nodes: tuple[Node, ...]
    outputs: frozenset[str]
    _model_rest: bytes  # what is not the graph
    _graph_rest: bytes  # what are not its nodes

    @classmethod
    def read(cls, model: bytes) -> ModelFile:
        """Reads a serialized `ModelProto`.

        Raises:
            ArtifactError: the bytes are not a model, or have no graph.
        """
        model_rest, graphs = [], []
        for number, whole, payload in _fields(memoryview(model)):
            if number == MODEL_GRAPH:
                graphs.append(payload)
            else:
                model_rest.append(whole)
        if len(graphs) != 1:
            raise _malformed()
        nodes, outputs, graph_rest = [], [], []
        for number, whole, payload in _fields(graphs[0]):
            if number == GRAPH_NODE:
                nodes.append(_read_node(payload))
                continue
            graph_rest.append(whole)
            if number == GRAPH_OUTPUT:
                outputs += [_text(name) for key, _, name in _fields(payload) if key == VALUE_NAME]
        return cls(tuple(nodes), frozenset(outputs), b"".join(model_rest), b"".join(graph_rest))

    def write(self, nodes: Sequence[Node], domain: str) -> bytes:
        """Returns the file with other nodes, and with version 1 of a domain imported."""
        graph = b"".join([*(_message(GRAPH_NODE, node.serialize()) for node in nodes), self._graph_rest])
        opset = _message(OPSET_DOMAIN, domain.encode()) + _integer(OPSET_VERSION, 1)
        return b"".join([self._model_rest, _message(MODEL_GRAPH, graph), _message(MODEL_OPSET_IMPORT, opset)])


def _read_node(payload: memoryview) -> Node:
    domain = operator = ""
    inputs, outputs = [], []
    attributes: dict[str, Number] = {}
    has_graph = False
    for number, _, value in _fields(payload):
        if number == NODE_DOMAIN:
            domain = _text(value)
        elif number == NODE_OP_TYPE:
            operator = _text(value)
        elif number == NODE_INPUT:
            inputs.append(_text(value))
        elif number == NODE_OUTPUT:
            outputs.append(_text(value))
        elif number == NODE_ATTRIBUTE:
            parts = {key: part for key, _, part in _fields(value)}
            has_graph |= ATTRIBUTE_GRAPH in parts or ATTRIBUTE_GRAPHS in parts
            name = _text(parts.get(ATTRIBUTE_NAME, memoryview(b"")))
            if ATTRIBUTE_INT in parts:
                integer, _ = _read_varint(parts[ATTRIBUTE_INT], 0)
                attributes[name] = integer - (1 << 64) if integer >= 1 << 63 else integer  # int64
            elif ATTRIBUTE_FLOAT in parts:
                attributes[name] = _read_float(parts[ATTRIBUTE_FLOAT])
    return Node(domain, operator, tuple(inputs), tuple(outputs), attributes, has_graph, bytes(payload))


def _attribute(name: str, value: Number) -> bytes:
    """Returns an `AttributeProto`."""
    if isinstance(value, float):
        number = _varint(ATTRIBUTE_FLOAT << 3 | FIXED32) + struct.pack("<f", value)
        kind = TYPE_FLOAT
    else:
        number = _integer(ATTRIBUTE_INT, value)
        kind = TYPE_INT
    return _message(ATTRIBUTE_NAME, name.encode()) + number + _integer(ATTRIBUTE_TYPE, kind)


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


def _read_float(payload: memoryview) -> float:
    if len(payload) != 4:
        raise _malformed()
    value: float = struct.unpack("<f", payload)[0]
    return value


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _integer(number: int, value: int) -> bytes:
    """Returns a field that is an int64."""
    return _varint(number << 3 | VARINT) + _varint(value % (1 << 64))


def _message(number: int, payload: bytes) -> bytes:
    """Returns a field whose payload has a length."""
    return _varint(number << 3 | LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _text(payload: memoryview) -> str:
    try:
        return str(payload, "utf-8")
    except UnicodeDecodeError:
        raise _malformed() from None


def _malformed() -> ArtifactError:
    return ArtifactError("it does not have the fields of onnx.proto", hint="Build the artifact again.")
