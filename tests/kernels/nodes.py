"""Graphs of one node, and what they should compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

qtool_kernels = pytest.importorskip("qtool_kernels", reason="qtool-kernels is not installed")

OURS, THEIRS = "qtool.kernels", "com.microsoft"


def session(
    node: Any, inputs: list[Any], outputs: list[Any], initializers: dict[str, Any], threads: int = 2
) -> Any:
    """A session of a graph of one node."""
    graph = helper.make_graph(
        [node],
        "one",
        inputs,
        outputs,
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(node.domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Small tasks, and many sessions: threads that spin would only be in each other's way.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # failures are what some tests ask for
    if node.domain == OURS:
        options.register_custom_ops_library(str(qtool_kernels.library_path()))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@dataclass(frozen=True)
class Weights:
    """A quantized matrix of `depth` rows and `columns` columns."""

    columns: int
    depth: int
    bits: int
    block_size: int
    values: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any]
    zero_points: np.ndarray[Any, Any] | None
    bias: np.ndarray[Any, Any] | None

    @classmethod
    def random(
        cls,
        columns: int,
        depth: int,
        bits: int,
        block_size: int,
        *,
        zero_points: bool,
        bias: bool,
        seed: int = 0,
    ) -> Weights:
        random = np.random.default_rng(seed)
        blocks = -(-depth // block_size)
        return cls(
            columns,
            depth,
            bits,
            block_size,
            random.integers(0, 256, (columns, blocks, block_size * bits // 8), dtype=np.uint8),
            random.normal(0, 0.02, (columns, blocks)).astype(np.float32),
            random.integers(0, 256, (columns, -(-blocks * bits // 8)), dtype=np.uint8)
            if zero_points
            else None,
            random.normal(0, 1, columns).astype(np.float32) if bias else None,
        )

    def session(self, domain: str = OURS, threads: int = 2, **more: Any) -> Any:
        """A session with the input A and the output Y."""
        given = {"A": None, "B": self.values, "scales": self.scales, "zero_points": self.zero_points}
        given |= {"g_idx": more.pop("g_idx", None), "bias": self.bias}
        names = [name if name == "A" or value is not None else "" for name, value in given.items()]
        while not names[-1]:
            names.pop()
        attributes = {"K": self.depth, "N": self.columns, "bits": self.bits, "block_size": self.block_size}
        node = helper.make_node(
            "MatMulNBits", names, ["Y"], domain=domain, accuracy_level=4, **(attributes | more)
        )
        return session(
            node,
            [helper.make_tensor_value_info("A", TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
            {name: value for name, value in given.items() if value is not None},
            threads,
        )

    def unpacked(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Values less their zero points, of shape (columns, blocks, block_size)."""
        values = _unpack(self.values, self.bits)
        blocks = values.shape[1]
        if self.zero_points is None:
            return values - (1 << (self.bits - 1))
        return values - _unpack(self.zero_points, self.bits)[:, :blocks, None]

    def multiply(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """x (rows, depth) times the weights, rounded where the kernels round: to the last bit."""
        rows, blocks = len(x), self.scales.shape[1]
        padded = np.zeros((rows, blocks * self.block_size), np.float32)
        padded[:, : self.depth] = x
        groups = padded.reshape(rows, blocks, self.block_size)
        largest = np.abs(groups).max(-1)
        usable = np.isfinite(largest) & (largest >= np.float32(2.0**-100))
        divisor = np.where(usable, largest, np.float32(1))
        scale = np.where(usable, largest / np.float32(127), np.where(np.isfinite(largest), 0, np.nan))
        scale = scale.astype(np.float32)
        scaled = np.where(usable[..., None], groups, 0) * (np.float32(127) / divisor)[..., None]
        products = np.einsum("mbk,nbk->mnb", np.rint(scaled).astype(np.int64), self.unpacked())
        terms = products.astype(np.float32) * (self.scales[None] * scale[:, None])
        sums = np.zeros((rows, self.columns, 4), np.float32)
        for block in range(blocks):
            sums[..., block % 4] += terms[..., block]
        y = (sums[..., 0] + sums[..., 1]) + (sums[..., 2] + sums[..., 3])
        return y if self.bias is None else y + self.bias


def _unpack(packed: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The last axis, low bits first."""
    shifts = np.arange(0, 8, bits)
    fields = packed[..., None].astype(np.int64) >> shifts & ((1 << bits) - 1)
    return fields.reshape(*packed.shape[:-1], -1)


def attention(domain: str, heads: int, kv_heads: int, size: int, *, packed: bool = False, **more: Any) -> Any:
    """GroupQueryAttention with rotation, as artifacts have it. `names` are its inputs."""
    names = ["q", "" if packed else "k", "" if packed else "v", "past_key", "past_value", "lengths", "total"]
    node = helper.make_node(
        "GroupQueryAttention",
        [*names, "cosine", "sine"],
        ["y", "key", "value"],
        domain=domain,
        **({"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1, "scale": size**-0.5} | more),
    )
    types = {"lengths": TensorProto.INT32, "total": TensorProto.INT32}
    angles = np.arange(512)[:, None] * np.exp(-np.arange(size // 2) / 8)
    return session(
        node,
        [
            helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None)
            for name in names
            if name
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "key", "value")],
        {"cosine": np.cos(angles).astype(np.float32), "sine": np.sin(angles).astype(np.float32)},
    )
