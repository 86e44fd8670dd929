"""Recipes: how much a build does for quality, beyond the target's formats."""

from __future__ import annotations

from dataclasses import dataclass

from qtool.errors import QtoolError
from qtool.quantize import gptq
from qtool.quantize.schemes import Role, scheme_for
from qtool_targets import Target, with_head_bits


@dataclass(frozen=True)
class Recipe:
    """A choice between the time of a build, the size of the artifact, and its quality."""

    name: str
    algorithm: str = "rtn"
    """For matrices of fewer than 8 bits; others are rounded to nearest, which costs them nothing."""
    head_bits: int | None = None
    """Bits of the LM head and the embedding, where the target has fewer."""

    def apply(self, target: Target) -> Target:
        """Returns the target with the recipe's formats."""
        if self.head_bits is None or target.weights.bits >= self.head_bits:
            return target
        return with_head_bits(target, self.head_bits)

    def calibrates(self, target: Target) -> bool:
        """Tells whether a build for `target` has matrices to calibrate."""
        return self.algorithm == gptq.NAME and any(
            scheme_for(target, role).is_calibrated_by_gptq for role in (Role.ATTENTION, Role.LM_HEAD)
        )
