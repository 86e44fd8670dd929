"""The contract of all passes together: the target's provider has a kernel for every node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir

from qtool.passes.kernels import Kernel, KernelTable, Signature, kernels_of, signatures
from qtool_targets import Target, TargetError

_NAMES = {
    ir.DataType.BOOL: "bool",
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT8: "int8",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
    ir.DataType.UINT8: "uint8",
}
_INDEX_TYPES = ("bool", "int32", "int64")
_SCALES = 2
"""Input of MatMulNBits and GatherBlockQuantized, of shape (rows, groups)."""

Types = dict[ir.Value | None, str | None]
"""Value -> name of its type; an absent input has none."""


class CheckKernels(ir.passes.InPlacePass):
    """Requires a finished graph; ensures that every node has a kernel of the target's provider.

    Nodes that compute with indices only, such as lengths out of an attention mask, may run on the CPU beside
    any provider: their tensors are a few numbers, and ONNX Runtime prefers to leave them there.
    """

    def __init__(self, target: Target) -> None:
        self._target = target

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Checks every node; changes nothing.

        Raises:
            TargetError: a node has no kernel, and what is wrong with it.
        """
        table = kernels_of(self._target.execution.provider)
        for node, problem in problems(model.graph, table):
            raise TargetError(
                f"target {self._target.name}: the provider {table.provider} has no kernel for the node"
                f" {node.name} ({node.op_type}): {problem}",
                hint="Choose another target, or other formats in [weights] and [precision].",
            )
        return ir.passes.PassResult(model, modified=False)


def problems(graph: ir.Graph, table: KernelTable) -> Iterator[tuple[ir.Node, str]]:
    """Yields every node that the provider has no kernel for, with the reason."""
    opset = graph.opset_imports[""]
    types: Types = {None: None}
    for value in (*graph.inputs, *graph.initializers.values()):
        types[value] = _NAMES.get(value.dtype) if value.dtype is not None else None
    for node in graph:
        key = (node.domain, node.op_type)
        if key not in signatures():
            yield node, "the operator is not among those that qtool knows"
            continue
        signature = signatures()[key]
        variables = _variables(node, signature, types)
        for value, kind in zip(node.outputs, signature.outputs, strict=False):
            types[value] = _output_type(node, kind, variables)
        if node.op_type == "Constant" or _computes_indices(node, types):
            continue
        kernel = table.kernels.get(key)
        if kernel is None:
            yield node, "there is none for this operator"
        elif problem := _problem(node, signature, kernel, variables, opset):
            yield node, problem


def _variables(node: ir.Node, signature: Signature, types: Types) -> dict[str, str]:
    """Returns what each type variable of the signature stands for at this node."""
    found: dict[str, str] = {}
    for index, value in enumerate(node.inputs):
        declared, actual = signature.input(index), types.get(value)
        if declared is not None and actual is not None:
            found.setdefault(declared[1], actual)
    return found


def _output_type(node: ir.Node, kind: str, variables: Mapping[str, str]) -> str | None:
    """Returns the type of an output that the signature declares as `kind`."""
    if not kind.startswith("@"):
        return variables.get(kind, kind)
    attribute = node.attributes.get(kind[1:])
    if attribute is None:
        return "float32"  # ConstantOfShape's default
    dtype = attribute.as_tensor().dtype if kind == "@value" else ir.DataType(attribute.as_int())
    return _NAMES.get(dtype)


def _computes_indices(node: ir.Node, types: Types) -> bool:
    """Whether a node reads nothing but integers and truth values; Shape reads no data at all."""
    read = () if node.op_type == "Shape" else node.inputs
    return all(types.get(value) in _INDEX_TYPES for value in read if value is not None)


def _problem(
    node: ir.Node, signature: Signature, kernel: Kernel, variables: Mapping[str, str], opset: int
) -> str | None:
    """Returns what the kernel does not take of a node, or None."""
    if node.domain == "":
        version = onnx.defs.get_schema(node.op_type, opset).since_version
        if version not in kernel.since:
            return f"version {version} (opset {opset}) is not among {_listed(kernel.since)}"
    for variable, valid in kernel.types.items():
        if variable in variables and variables[variable] not in valid:
            return f"{variable} is {variables[variable]}; valid: {_listed(valid)}"
    for name, values in kernel.attributes.items():
        if (value := node.attributes.get_int(name, 0)) not in values:
            return f"{name} is {value}; valid: {_listed(values)}"
    return _input_problem(node, signature, kernel)


def _input_problem(node: ir.Node, signature: Signature, kernel: Kernel) -> str | None:
    """Returns which input the kernel does not take, or lacks, or None."""
    present = {
        declared[0]
        for index, value in enumerate(node.inputs)
        if value is not None and (declared := signature.input(index)) is not None
    }
    if unwanted := [name for name in kernel.without if name in present]:
        return f"it takes no {unwanted[0]}"
    if missing := [name for name in kernel.needs if name not in present]:
        return f"it needs {missing[0]}"
    if kernel.whole_bytes and "zero_points" in present and _splits_bytes(node):
        return "its rows have an odd number of 4-bit zero points"
    return None


def _splits_bytes(node: ir.Node) -> bool:
    """Whether a row of zero points, one for each scale, ends within a byte."""
    scales = node.inputs[_SCALES]
    assert scales is not None and scales.shape is not None
    return bool(scales.shape.numpy()[-1] * node.attributes.get_int("bits", 4) % 8)


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values))
