"""What a target's integers stand for: a checkpoint's tensors after quantization and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from qtool.quantize import rtn
from qtool.quantize.schemes import Role, role_of, scheme_for
from qtool_targets import Target

Tensors = dict[str, npt.NDArray[np.float32]]


def dequantized(tensors: Mapping[str, npt.NDArray[np.float32]], target: Target) -> Tensors:
    """Returns every tensor as the target's artifact holds it, the LM head apart from the embedding."""
    dtype = np.dtype(target.precision.activations)
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    result: Tensors = {}
    for name, values in {**tensors, "lm_head.weight": head}.items():
        role = role_of(name)
        scheme = scheme_for(target, role or Role.MLP)
        if role is None or not scheme.is_integer:
            result[name] = values.astype(dtype).astype(np.float32)
        else:
            result[name] = rtn.dequantize(rtn.quantize(values, scheme, dtype), scheme)
    return result
