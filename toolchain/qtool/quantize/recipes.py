"""Recipes: how much a build does for quality, beyond what the target says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qtool.errors import OptionError
from qtool.quantize.formats import Formats
from qtool.quantize.schemes import Role, scheme_for
from qtool_targets import Target

OLIVE_MIXED, OLIVE_GPTQ = "SelectiveMixedPrecision", "Gptq"
"""Passes of Microsoft Olive."""


@dataclass(frozen=True)
class Recipe:
    """A choice between the time of a build, the size of the artifact, and its quality."""

    name: str
    calibrated: bool
    """Matrices of fewer than 8 bits are calibrated on a text (GPTQ) instead of rounded to nearest."""
    room: float | None = None
    """What matrices may take in all if nothing else is asked for, relative to the target's formats: bits and
    group sizes are then chosen for each matrix by what it costs to round it. None: the target's formats."""
    olive_passes: tuple[str, ...] = ()
    """Passes of Olive that quantize the matrices of the layers, instead of qtool."""

    def calibrates(self, formats: Formats) -> bool:
        """Tells whether there is anything to calibrate in matrices of these formats."""
        return self.calibrated and any(scheme.loses_by_rounding for scheme in formats.values())

    def runs_olive(self, target: Target) -> bool:
        """Tells whether Olive has anything to quantize in a build for `target`."""
        return bool(self.olive_passes) and scheme_for(target, Role.MLP).is_integer

    def changes(self, target: Target) -> bool:
        """Tells whether an artifact for `target` is not the same as with the recipe `fast`."""
        formats = {str(role): scheme_for(target, role) for role in Role}
        spends = self.room is not None and any(scheme.is_integer for scheme in formats.values())
        return spends or self.calibrates(formats) or self.runs_olive(target)


FAST = Recipe("fast", calibrated=False)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        FAST,
        Recipe("balanced", calibrated=True),
        Recipe("best", calibrated=True, room=1.17),
        Recipe("olive", calibrated=False, olive_passes=(OLIVE_GPTQ,)),
        Recipe("olive-mixed", calibrated=False, olive_passes=(OLIVE_MIXED, OLIVE_GPTQ)),
    )
}


def recipe_called(name: str) -> Recipe:
    """Returns the recipe of this name.

    Raises:
        OptionError: there is none.
    """
    if name not in RECIPES:
        raise OptionError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]


def recipes_for(recipe: Recipe, targets: Sequence[Target]) -> list[Recipe]:
    """Returns the recipe for each target for which it changes anything, and `FAST` for the others.

    Raises:
        OptionError: it changes nothing for any of them.
    """
    found = [recipe if recipe.changes(target) else FAST for target in targets]
    if recipe == FAST or recipe in found:
        return found
    names = ", ".join(target.name for target in targets)
    useful = [each.name for each in RECIPES.values() if any(each.changes(target) for target in targets)]
    raise OptionError(
        f"the recipe {recipe.name} would change nothing for the target {names}",
        hint=f"Choose one of: {', '.join([FAST.name, *useful])}; or a target of fewer bits.",
    )
