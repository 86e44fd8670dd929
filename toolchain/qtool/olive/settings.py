"""What Olive is asked for, as plain data: enough to plan an artifact without it."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.packed_formats import OliveFormat
from qtool.checkpoint.quantization import Quantization
from qtool.errors import MissingExtraError
from qtool.quantize.recipes import OLIVE_MIXED
from qtool.quantize.schemes import Role, Scheme, scheme_for
from qtool_targets import Target

ALGORITHM = "olive"
PACKAGES = ("olive-ai", "torch", "transformers")
"""What shapes the integers."""
MIXED_ALGORITHM = "k_quant_mixed"
HIGH_BITS = 8

_IMPORTED = (*PACKAGES, "requests")  # olive-ai 0.13 imports it without asking for it
_MIXED_MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")


def check_installed() -> None:
    """Refuses to begin without Olive.

    Raises:
        MissingExtraError: one of its packages is not installed.
    """
    for package in _IMPORTED:
        try:
            version(package)
        except PackageNotFoundError as error:
            raise MissingExtraError(
                f"the recipe olive needs the package {package!r}, which is not installed",
                hint="Run: pip install 'qtool-edge[olive]', in an environment without the extra optimum",
            ) from error


def planned_quantization(config: QwenConfig, target: Target, passes: tuple[str, ...]) -> Quantization:
    """Returns how the matrices of the layers will be quantized."""
    scheme = olive_scheme(target)
    own: dict[str, Scheme] = {}
    if OLIVE_MIXED in passes:
        high = replace(scheme, bits=HIGH_BITS)
        own = {
            f"model.layers.{index}.{module}": high
            for index in range(config.num_hidden_layers)
            if _has_high_bits(index, config.num_hidden_layers)
            for module in _MIXED_MODULES
        }
    return Quantization(ALGORITHM, OliveFormat(), scheme, own=own)


def olive_scheme(target: Target) -> Scheme:
    """Returns the target's scheme of matrices in layers, as Olive's."""
    return replace(scheme_for(target, Role.MLP), algorithm=ALGORITHM)


def _has_high_bits(index: int, layers: int) -> bool:
    """Tells whether a layer's most sensitive matrices have more bits.

    Source: the documentation of Olive's pass SelectiveMixedPrecision, algorithm k_quant_mixed: the first and
    the last eighth of the layers, and every third between them.
    """
    return index < layers / 8 or index >= 7 * layers / 8 or (index - layers // 8) % 3 == 2
