"""The graph takes the version of the standard operators that a provider's kernels are registered for."""

from __future__ import annotations

import onnx_ir as ir

from qtool.passes.capabilities import Capabilities


class LowerOpset(ir.passes.InPlacePass):
    """Requires operators that mean the same in both opsets; ensures the provider's, or an earlier one.

    Between 18 and 23, the operators that we write differ in their lists of types only. RMSNormalization came
    with 23: it has to be written out before.
    """

    def __init__(self, capabilities: Capabilities) -> None:
        self._opset = capabilities.opset

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Declares the opset."""
        imports = model.graph.opset_imports
        modified = imports[""] > self._opset
        if modified:
            imports[""] = self._opset
        return ir.passes.PassResult(model, modified)
