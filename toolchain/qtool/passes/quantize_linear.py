"""Linear layers become MatMulNBits where their weights are stored as integers."""

from __future__ import annotations

import onnx_ir as ir

from qtool.checkpoint.layout import LM_HEAD
from qtool.models.graph import MICROSOFT, add_initializer, append_node
from qtool.passes.capabilities import Capabilities
from qtool.passes.linear import Linear, linears, replace
from qtool.quantize.formats import Formats
from qtool.quantize.schemes import Role, Scheme, role_of
from qtool.quantize.storage import Calibrated, integer_storage
from qtool.storage import StoredTensor


class QuantizeLinear(ir.passes.InPlacePass):
    """Requires linear layers in the form of `passes.linear`; ensures MatMulNBits for every integer scheme."""

    def __init__(self, formats: Formats, capabilities: Capabilities, calibrated: Calibrated) -> None:
        self._formats = formats
        self._calibrated = calibrated
        self._capabilities = capabilities

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces every linear layer whose scheme is integer."""
        changed = False
        for linear in linears(model.graph):
            name = linear.storage.weight.name
            # A tied embedding that is multiplied with is the LM head.
            in_layer = role_of(name) in (Role.ATTENTION, Role.MLP)
            scheme = self._formats[name if in_layer else LM_HEAD]
            if scheme.is_integer:
                self._quantize(model.graph, linear, scheme)
                changed = True
        return ir.passes.PassResult(model, changed)

    def _quantize(self, graph: ir.Graph, linear: Linear, scheme: Scheme) -> None:
        storage = integer_storage(linear.storage, scheme, self._calibrated)
        rows, columns = storage.weight.shape
        groups = columns // scheme.group_size
        name = linear.node.name or "linear"
        blocks = (rows, groups, scheme.group_size * scheme.bits // 8)
        integers = add_initializer(graph, StoredTensor(f"{name}.q", storage, 0, blocks))
        scale = add_initializer(graph, StoredTensor(f"{name}.scale", storage, 1))
        zero_point = None
        if not scheme.symmetric:
            zero_point = add_initializer(graph, StoredTensor(f"{name}.zero_point", storage, 2))
        inputs = [linear.node.inputs[0], integers, scale, zero_point]
        fuses_bias = linear.bias is not None and self._capabilities.supports_matmul_bias
        if fuses_bias:
            inputs += [None, linear.bias]
        attributes = {
            "K": columns,
            "N": rows,
            "bits": scheme.bits,
            "block_size": scheme.group_size,
            "accuracy_level": self._capabilities.matmul_accuracy_level,
        }
        (output,) = append_node(
            graph, name, "MatMulNBits", inputs, 1, domain=MICROSOFT, attributes=attributes, before=linear.node
        )
        if fuses_bias and linear.add is not None:
            replace(graph, linear.output, output, [linear.add, linear.node])
        else:
            replace(graph, linear.node.outputs[0], output, [linear.node])
