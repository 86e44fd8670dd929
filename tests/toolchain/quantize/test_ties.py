"""Symmetric integers are those of ONNX Runtime's own quantizer, also where weights lie between two steps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from qtool.quantize import rtn
from qtool.quantize.packing import unpack
from qtool.quantize.schemes import Scheme

ROWS, COLUMNS, GROUP = 64, 256, 32


def weights(kind: str) -> npt.NDArray[np.float32]:
    """Returns weights as they come, or as a source that was quantized to 5 bits has them."""
    random = np.random.default_rng(0)
    values = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    if kind == "quantized":
        scale = np.float32(2.0**-7)
        values = np.clip(np.rint(values * 6), -16, 16).astype(np.float32) * scale
    return values


@pytest.mark.parametrize("kind", ["plain", "quantized"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_integers_of_onnxruntime(kind: str, bits: int) -> None:
    state = pytest.importorskip("onnxruntime.capi._pybind_state")
    values, groups = weights(kind), COLUMNS // GROUP
    packed = np.zeros((ROWS, groups, GROUP * bits // 8), np.uint8)
    scale = np.zeros((ROWS, groups), np.float32)
    unused = np.zeros((ROWS, groups * bits // 8), np.uint8)
    quantize = {4: state.quantize_matmul_4bits, 8: state.quantize_matmul_8bits}[bits]
    quantize(packed, np.ascontiguousarray(values.T), scale, unused, GROUP, ROWS, COLUMNS, True)
    found = rtn.quantize(values, Scheme(bits, GROUP, symmetric=True))
    np.testing.assert_array_equal(found.scale, scale)
    np.testing.assert_array_equal(found.q, unpack(packed, bits, GROUP))
