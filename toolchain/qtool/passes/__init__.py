"""Graph rewrites, one a file, in the order in which the pipeline runs them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qtool.checkpoint.layout import EMBEDDING
from qtool.passes.capabilities import Capabilities, capabilities_for
from qtool.passes.check_kernels import CheckKernels
from qtool.passes.lower_opset import LowerOpset
from qtool.passes.lower_rms_normalization import LowerRmsNormalization
from qtool.passes.lower_rotary_attention import LowerRotaryAttention
from qtool.passes.quantize_embedding import QuantizeEmbedding
from qtool.passes.quantize_linear import QuantizeLinear
from qtool.quantize.formats import Formats
from qtool.quantize.storage import Calibrated
from qtool_targets import Target

__all__ = ["Capabilities", "capabilities_for", "passes_for"]


def passes_for(target: Target, formats: Formats, calibrated: Calibrated) -> tuple[ir.passes.InPlacePass, ...]:
    """Returns the rewrites that turn an exported graph into the target's, in order.

    Args:
        target: what the graph is for.
        formats: how each matrix is stored.
        calibrated: integers that are there already; other matrices are rounded when they are written.

    They are not one `ir.passes.Sequential`, which would wrap their errors in one of its own.

    Raises:
        TargetError: the target asks for something that its provider cannot run.
    """
    capabilities = capabilities_for(target)
    return (
        QuantizeLinear(formats, capabilities, calibrated),
        QuantizeEmbedding(formats[EMBEDDING], calibrated),
        LowerRmsNormalization(capabilities),
        LowerRotaryAttention(capabilities),
        LowerOpset(capabilities),
        RemoveUnusedNodesPass(),
        CheckKernels(target),
    )
