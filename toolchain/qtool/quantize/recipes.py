"""Recipes: how much a build does for quality, beyond what the target says."""

from __future__ import annotations

from dataclasses import dataclass

from qtool.errors import QtoolError
from qtool.quantize.schemes import Role, scheme_for
from qtool_targets import Target, with_head_bits

OLIVE_MIXED, OLIVE_GPTQ = "SelectiveMixedPrecision", "Gptq"
"""Passes of Microsoft Olive."""


@dataclass(frozen=True)
class Recipe:
    """A choice between the time of a build, the size of the artifact, and its quality."""

    name: str
    calibrated: bool
    """Matrices of fewer than 8 bits are calibrated on a text (GPTQ) instead of rounded to nearest."""
    head_bits: int | None = None
    """Bits of the LM head and the embedding, where the target has fewer."""
    olive_passes: tuple[str, ...] = ()
    """Passes of Olive that quantize the matrices of the layers, instead of qtool."""

    def apply(self, target: Target) -> Target:
        """Returns the target with the recipe's formats."""
        return with_head_bits(target, self.head_bits) if self.head_bits else target

    def calibrates(self, target: Target) -> bool:
        """Tells whether there is anything to calibrate in a build for `target`."""
        return self.calibrated and any(scheme_for(target, role).loses_by_rounding for role in Role)

    def runs_olive(self, target: Target) -> bool:
        """Tells whether Olive has anything to quantize in a build for `target`."""
        return bool(self.olive_passes) and scheme_for(target, Role.MLP).is_integer


FAST = Recipe("fast", calibrated=False)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        FAST,
        Recipe("balanced", calibrated=True),
        Recipe("best", calibrated=True, head_bits=8),
        Recipe("olive", calibrated=False, olive_passes=(OLIVE_GPTQ,)),
        Recipe("olive-mixed", calibrated=False, olive_passes=(OLIVE_MIXED, OLIVE_GPTQ)),
    )
}


def recipe_called(name: str) -> Recipe:
    """Returns the recipe of this name.

    Raises:
        QtoolError: there is none.
    """
    if name not in RECIPES:
        raise QtoolError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]
