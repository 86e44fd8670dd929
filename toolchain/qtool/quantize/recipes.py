"""Recipes: how much a build does for quality, beyond what the target says."""

from __future__ import annotations

from dataclasses import dataclass

from qtool.errors import QtoolError
from qtool.quantize.formats import Formats


@dataclass(frozen=True)
class Recipe:
    """A choice between the time of a build, the size of the artifact, and its quality."""

    name: str
    calibrated: bool
    """Matrices of fewer than 8 bits are calibrated on a text (GPTQ) instead of rounded to nearest."""
    room: float | None = None
    """What matrices may take in all if nothing else is asked for, relative to the target's formats: bits and
    group sizes are then chosen for each matrix by what it costs to round it. None: the target's formats."""

    def calibrates(self, formats: Formats) -> bool:
        """Tells whether there is anything to calibrate in matrices of these formats."""
        return self.calibrated and any(scheme.loses_by_rounding for scheme in formats.values())


FAST = Recipe("fast", calibrated=False)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        FAST,
        Recipe("balanced", calibrated=True),
        Recipe("best", calibrated=True, room=1.17),
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
