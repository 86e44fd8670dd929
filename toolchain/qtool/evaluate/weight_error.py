"""How far an artifact's weights are from the source's, layer by layer.

This is arithmetic on two sets of numbers: no text is involved, and a small error in one matrix may matter
more than a large one in another. It shows where a scheme loses, not how much the model suffers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qtool.checkpoint.layout import EMBEDDING, LM_HEAD
from qtool.checkpoint.weight import Weight
from qtool.errors import SourceError
from qtool.quantize.schemes import Role, role_of

_CHUNK_ELEMENTS = 1 << 20
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class WeightError:
    """Error of the matrices of one kind in one layer, taken together.

    Attributes:
        group: "attention", "mlp", "embedding" or "lm_head".
        layer: index of the decoder layer; None for matrices outside them.
        relative: |W - W'| / |W| with Frobenius norms over all the group's weights: W of the source, W' of the
            artifact. 0 where both are the same.
    """

    group: str
    layer: int | None
    relative: float


def weight_errors(source: Mapping[str, Weight], artifact: Mapping[str, Weight]) -> tuple[WeightError, ...]:
    """Compares every weight matrix of an artifact with the source's.

    Args:
        source: tensors by their Hugging Face names.
        artifact: likewise. A tied LM head that is stored on its own is compared with the embedding.

    Returns:
        One error for each kind of matrix in each layer, embedding and LM head first.

    Raises:
        SourceError: a matrix has another shape in the source, or is not there.
    """
    squares: dict[tuple[str, int | None], tuple[float, float]] = {}
    for name, weight in artifact.items():
        role = role_of(name)
        if role is None:
            continue
        original = source.get(name) or (source.get(EMBEDDING) if name == LM_HEAD else None)
        if original is None or original.shape != weight.shape:
            found = "no such matrix" if original is None else f"one of {original.shape}"
            raise SourceError(
                f"the artifact has the matrix {name} of shape {weight.shape}, the source has {found}",
                hint="Give the model that the artifact was built from.",
            )
        place = _LAYER.match(name)
        key = (str(role), int(place[1]) if place else None)
        error, size = squares.get(key, (0.0, 0.0))
        more_error, more_size = _squares(original, weight)
        squares[key] = (error + more_error, size + more_size)
    order = list(Role)
    keys = sorted(squares, key=lambda key: (key[1] is not None, key[1] or 0, order.index(Role(key[0]))))
    return tuple(WeightError(*key, relative=_relative(*squares[key])) for key in keys)


def _squares(original: Weight, weight: Weight) -> tuple[float, float]:
    """Returns the sums of squares of the differences and of the original's values."""
    error = size = 0.0
    rows, columns = weight.shape
    step = max(1, _CHUNK_ELEMENTS // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        expected = original.read(start, stop)
        difference = expected - weight.read(start, stop)
        error += float(np.vdot(difference, difference))
        size += float(np.vdot(expected, expected))
    return error, size


def _relative(error: float, size: float) -> float:
    return float(np.sqrt(error / size)) if size else float(error > 0)
