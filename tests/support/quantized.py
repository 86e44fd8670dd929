"""Writes checkpoints that are quantized already, in the forms in which GPTQ, AWQ and Olive publish them.

Integers are packed here by arithmetic on the rules that those tools publish, so that a test which reads them
back compares two implementations. They are those of rounding to nearest: what matters is how they are stored.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from qtool.checkpoint import open_checkpoint
from qtool.checkpoint.layout import weight_shapes
from qtool.quantize import rtn
from qtool.quantize.schemes import Role, Scheme, role_of

Array = npt.NDArray[Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """What was written."""

    folder: Path
    tensors: dict[str, npt.NDArray[np.float32]]
    """Hugging Face name -> what the stored values stand for, all of them."""


@dataclass(frozen=True)
class Style:
    """How to quantize and store.

    Attributes:
        method: "gptq", "gptq_v2", "awq" or "olive".
        bits: of the integers.
        group_size: input features of a group.
        symmetric: all zero points are in the middle.
        lm_head: quantize a LM head too (gptq and olive).
        zero_biases: write a bias of zeros for every quantized module that has none, as AutoGPTQ did.
        scale_type: of scales and of tensors that are not quantized.
    """

    method: str
    bits: int = 4
    group_size: int = 32
    symmetric: bool = True
    lm_head: bool = False
    zero_biases: bool = False
    scale_type: str = "float16"

    def config(self) -> dict[str, Any]:
        """Returns the `quantization_config` that the method's own tools write."""
        common = {"bits": self.bits, "group_size": self.group_size}
        if self.method == "awq":
            return common | {
                "modules_to_not_convert": None,
                "quant_method": "awq",
                "version": "gemm",
                "zero_point": True,
            }
        if self.method == "olive":
            return common | {
                "embeds": False,
                "lm_head": self.lm_head,
                "modules_to_not_convert": None,
                "overrides": None,
                "quant_method": "olive",
                "symmetric": self.symmetric,
                "tie_word_embeddings": False,
            }
        return common | {
            "checkpoint_format": self.method,
            "damp_percent": 0.01,
            "desc_act": False,
            "lm_head": self.lm_head,
            "model_file_base_name": "model",
            "model_name_or_path": None,
            "quant_method": "gptq",
            "static_groups": False,
            "sym": self.symmetric,
            "true_sequential": True,
        }


def write_quantized_checkpoint(folder: Path, source: Path, style: Style) -> QuantizedCheckpoint:
    """Quantizes the matrices of a safetensors folder.

    Args:
        folder: where to; made.
        source: a folder with plain floats.
        style: how.
    """
    folder.mkdir(parents=True)
    checkpoint = open_checkpoint(str(source))
    scheme = Scheme(style.bits, style.group_size, style.symmetric)
    roles = {Role.ATTENTION, Role.MLP} | ({Role.LM_HEAD} if style.lm_head else set())
    stored: dict[str, Array] = {}
    means: dict[str, npt.NDArray[np.float32]] = {}
    for name in weight_shapes(checkpoint.config):
        values = checkpoint.weights[name].read_all()
        if role_of(name) not in roles:
            stored[name] = values.astype(style.scale_type)
            means[name] = stored[name].astype(np.float32)
            continue
        quantized = rtn.quantize(values, scheme, style.scale_type)
        means[name] = rtn.dequantize(quantized, scheme)
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{part}": array for part, array in _parts(quantized, style).items()}
        if style.zero_biases and f"{module}.bias" not in checkpoint.weights:
            stored[f"{module}.bias"] = np.zeros(len(values), style.scale_type)
    # save_file writes the memory of an array whatever its order.
    stored = {name: np.ascontiguousarray(array) for name, array in stored.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text("utf-8"))
    config |= {"quantization_config": style.config(), "torch_dtype": style.scale_type}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in checkpoint.tokenizer_files():
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    return QuantizedCheckpoint(folder, means)


def _parts(quantized: rtn.Quantized, style: Style) -> dict[str, Array]:
    """Returns the tensors that stand for a matrix (out_features, in_features)."""
    rows, groups, size = quantized.q.shape
    q, middle = quantized.q.reshape(rows, -1).astype(np.int64), 1 << (style.bits - 1)
    zeros = quantized.zero_point
    zero_points = (np.full((rows, groups), middle) if zeros is None else zeros).astype(np.int64)
    if style.method == "olive":
        parts = {"qweight": words(q, style.bits, 8), "scales": quantized.scale}
        return parts if style.symmetric else parts | {"qzeros": words(zero_points, style.bits, 8)}
    if style.method == "awq":
        return {
            "qweight": words(_interleaved(q.T), style.bits, 32),
            "qzeros": words(_interleaved(zero_points.T), style.bits, 32),
            "scales": quantized.scale.T,
        }
    offset = 1 if style.method == "gptq" else 0
    return {
        "qweight": words(q, style.bits, 32).T,
        "qzeros": words(zero_points.T - offset, style.bits, 32),
        "scales": quantized.scale.T,
        "g_idx": np.repeat(np.arange(groups), size).astype(np.int32),
    }


def words(values: Array, bits: int, width: int) -> Array:
    """Packs the last dimension into words, the first value in the lowest bits; fills up with zeros."""
    count = width // bits
    filled = np.pad(values, ((0, 0), (0, -values.shape[1] % count)))
    packed = sum(filled[:, place::count] << (bits * place) for place in range(count))
    unsigned = np.asarray(packed).astype(np.uint8 if width == 8 else np.uint32)
    return unsigned if width == 8 else unsigned.view(np.int32)


def _interleaved(values: Array) -> Array:
    """Brings every eight columns into the order in which AutoAWQ packs them."""
    order = [start + column for start in range(0, values.shape[1], 8) for column in AWQ_ORDER]
    return values[:, order]
