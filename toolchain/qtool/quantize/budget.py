"""Which bits and group size each matrix gets, so that all together take no more than a budget of bytes.

What a format costs in quality is given for each matrix, and taken to add up over matrices. Upgrades are then
bought in the order of what they save per byte. That is optimal (the Lagrangian relaxation of a knapsack) but
for the last bytes of the budget, which go to the best upgrades that still fit. The largest matrix, often an
embedding of a quarter of the model, is too large a step for that: each of its formats is tried in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from qtool.quantize.schemes import Scheme


class Option(NamedTuple):
    """One way to store a matrix."""

    scheme: Scheme
    nbytes: int
    loss: float
    """What it costs in quality, in any unit that adds up; at least 0."""


Options = Mapping[str, Sequence[Option]]
"""By the matrix's name; none is empty."""


def fewest_bytes(options: Options) -> int:
    """Returns the smallest budget that can be kept."""
    return sum(min(option.nbytes for option in choices) for choices in options.values())


def most_bytes(options: Options) -> int:
    """Returns the budget from which on nothing is gained."""
    return sum(
        min(choices, key=lambda option: (option.loss, option.nbytes)).nbytes for choices in options.values()
    )


def spend(options: Options, budget: int) -> dict[str, Option]:
    """Chooses an option for each matrix, with the least loss in all, within the budget.

    Args:
        options: what there is to choose from.
        budget: bytes for all matrices; at least `fewest_bytes(options)`.

    Returns:
        The choice by name, in the order of `options`.
    """
    curves = {name: _convex(choices) for name, choices in options.items()}
    largest = max(curves, key=lambda name: curves[name][0].nbytes)
    found = []
    for option in options[largest]:
        chosen = _buy({**curves, largest: [option]}, budget)
        nbytes = sum(each.nbytes for each in chosen.values())
        if nbytes <= budget:
            found.append((sum(each.loss for each in chosen.values()), nbytes, chosen))
    return min(found, key=lambda item: item[:2])[2]


def _buy(curves: Mapping[str, list[Option]], budget: int) -> dict[str, Option]:
    """Starts with the smallest options and buys upgrades, those that save most per byte first."""
    chosen = {name: curve[0] for name, curve in curves.items()}
    left = budget - sum(option.nbytes for option in chosen.values())
    upgrades = [
        ((cheap.loss - dear.loss) / (dear.nbytes - cheap.nbytes), name, cheap, dear)
        for name, curve in curves.items()
        for cheap, dear in pairwise(curve)
    ]
    for _, name, cheap, dear in sorted(upgrades, key=lambda upgrade: -upgrade[0]):
        price = dear.nbytes - cheap.nbytes
        if chosen[name] is cheap and price <= left:
            chosen[name] = dear
            left -= price
    return chosen


def _convex(choices: Sequence[Option]) -> list[Option]:
    """Returns the options that no mixture of two others beats, from small to large."""
    curve: list[Option] = []
    for option in sorted(choices, key=lambda option: (option.nbytes, option.loss)):
        if curve and option.loss >= curve[-1].loss:
            continue
        while len(curve) > 1 and _saving(curve[-2], curve[-1]) <= _saving(curve[-1], option):
            curve.pop()
        curve.append(option)
    return curve


def _saving(cheap: Option, dear: Option) -> float:
    return (cheap.loss - dear.loss) / (dear.nbytes - cheap.nbytes)
