"""A weight that is not in memory: name, shape, and a way to read some of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qtool.errors import SourceError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Weight:
    """A tensor of a checkpoint, read by rows.

    `read(start, stop)` returns the rows [start, stop) of the first dimension as float32, whatever the type on
    disk, and raises a `SourceError` where one of them is not finite. It may be called from several threads at
    once.
    """

    name: str
    shape: tuple[int, ...]
    stored_type: str
    """The type on disk in its format's own words, such as "BF16" or "Q4_K"."""
    read: Callable[[int, int], FloatArray]
    rows_at_once: int = 1
    """Fewest rows that are worth reading at once: some formats store matrices by columns."""

    def read_all(self) -> FloatArray:
        """Returns the whole tensor as float32; meant for norms and biases."""
        return self.read(0, self.shape[0])


def require_finite(values: FloatArray, name: str) -> FloatArray:
    """Returns `values`, refusing infinities and NaN: one of them would spoil every answer of the model.

    A sum shows them at a tenth of the cost of looking at each value.

    Raises:
        SourceError: a value is not finite.
    """
    with np.errstate(all="ignore"):
        suspicious = not np.isfinite(values.sum(dtype=np.float32))
    if suspicious and not np.isfinite(values).all():  # a sum of enormous values may overflow too
        raise SourceError(
            f"the tensor {name} holds values that are infinite or not a number",
            hint="the file is damaged, or the model was trained or converted badly: take another copy of it",
        )
    return values
