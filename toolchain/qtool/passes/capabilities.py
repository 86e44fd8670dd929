"""What an execution provider can run: one frozen record each, read by the passes.

`supports_x` means "x may stay in the graph"; where it is False a pass replaces x. No pass asks for the name
of a provider.
"""

from __future__ import annotations

from dataclasses import dataclass

from qtool_targets import Target, TargetError


@dataclass(frozen=True)
class Capabilities:
    """What a provider's kernels accept."""

    provider: str
    opset: int
    """Highest version of the standard operators that has kernels throughout."""
    matmul_bits: tuple[int, ...]
    """Integers that MatMulNBits multiplies with."""
    matmul_accuracy_level: int
    """MatMulNBits: 4 lets the kernel round activations to int8, 0 is the provider's default."""
    supports_rms_normalization: bool
    """The standard operator RMSNormalization (opset 23)."""
    supports_quantized_embedding: bool
    """GatherBlockQuantized."""
    supports_zero_points: bool
    """MatMulNBits with zero points (asymmetric weights)."""
    supports_implied_zero_points: bool
    """Symmetric weights without zero points: all kernels of all versions subtract the middle of the range."""
    supports_matmul_bias: bool
    """MatMulNBits with a bias."""
    supports_rotary_attention: bool
    """GroupQueryAttention that rotates queries and keys by itself."""
    supports_int8_kv_cache: bool
    """GroupQueryAttention with int8 keys and values, one scale a channel; has run, and gave right values."""


# Sources are beside the tables of kernels (passes/kernels). A kernel is registered for some versions of an
# operator: those of opset 18 have kernels everywhere, those of 23 throughout on the CPU only. Biases are left
# to the fusion of CUDA and WebGPU, because earlier versions of their kernels ignore or refuse one.
_CAPABILITIES = {
    record.provider: record
    for record in (
        Capabilities(
            "cpu",
            opset=23,
            matmul_bits=(2, 4, 8),
            matmul_accuracy_level=4,
            supports_rms_normalization=True,
            supports_quantized_embedding=True,
            supports_zero_points=True,
            supports_implied_zero_points=True,
            supports_matmul_bias=True,
            supports_rotary_attention=True,
            supports_int8_kv_cache=True,
        ),
        Capabilities(
            "cuda",
            opset=18,
            matmul_bits=(4, 8),
            matmul_accuracy_level=0,
            supports_rms_normalization=False,
            supports_quantized_embedding=True,
            supports_zero_points=True,
            supports_implied_zero_points=False,
            supports_matmul_bias=False,
            supports_rotary_attention=True,
            supports_int8_kv_cache=False,
        ),
        Capabilities(
            "directml",
            opset=18,
            matmul_bits=(4, 8),
            matmul_accuracy_level=0,
            supports_rms_normalization=False,
            supports_quantized_embedding=False,
            supports_zero_points=True,
            supports_implied_zero_points=False,
            supports_matmul_bias=False,
            supports_rotary_attention=False,
            supports_int8_kv_cache=False,
        ),
        Capabilities(
            "webgpu",
            opset=18,
            matmul_bits=(4, 8),
            matmul_accuracy_level=4,
            supports_rms_normalization=False,
            supports_quantized_embedding=True,
            supports_zero_points=True,
            supports_implied_zero_points=True,
            supports_matmul_bias=False,
            supports_rotary_attention=True,
            supports_int8_kv_cache=False,
        ),
    )
}


def capabilities_for(target: Target) -> Capabilities:
    """Returns the record of the target's provider.

    Raises:
        TargetError: the target asks for something that its provider cannot run.
    """
    record = _CAPABILITIES[target.execution.provider]
    embedding_bits = target.weights.embedding_bits or target.weights.bits
    if embedding_bits <= 8 and not record.supports_quantized_embedding:
        raise TargetError(
            f"target {target.name}: weights.embedding_bits = {embedding_bits}, but the provider"
            f" {record.provider} has no kernel for a quantized embedding",
            hint="Set weights.embedding_bits to 16 (or 32 with float32 activations).",
        )
    head_bits = target.weights.lm_head_bits or target.weights.bits
    integers = min(target.weights.bits, embedding_bits, head_bits) <= 8
    if integers and not target.weights.symmetric and not record.supports_zero_points:
        raise TargetError(
            f"target {target.name}: weights.symmetric = false, but the provider {record.provider} takes no"
            " zero points",
            hint="Set weights.symmetric to true.",
        )
    if integers and target.weights.symmetric and not record.supports_implied_zero_points:
        raise TargetError(
            f"target {target.name}: weights.symmetric = true, but the provider {record.provider} takes absent"
            " zero points for 0",
            hint="Set weights.symmetric to false.",
        )
    if target.precision.kv_cache == "int8" and not record.supports_int8_kv_cache:
        raise TargetError(
            f"target {target.name}: precision.kv_cache = 'int8', but the provider {record.provider} is not"
            " known to compute attention over an int8 cache",
            hint=f"Leave the cache in {target.precision.activations}, or choose a target for the CPU.",
        )
    return record
