"""What bits can be spent on: the formats that each matrix of a model may have, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.layout import EMBEDDING, LM_HEAD
from qtool.quantize.alignment import aligned, alignment
from qtool.quantize.budget import Option, fewest_bytes, most_bytes, spend
from qtool.quantize.formats import Formats, shares_embedding, stored_matrices
from qtool.quantize.schemes import Scheme

GROUP_SIZES = (32, 64, 128)

Losses = Mapping[str, Mapping[Scheme, float]]
"""What formats cost in quality, by the matrix's name; in any unit that adds up."""


@dataclass(frozen=True)
class Choices:
    """The formats that matrices may have.

    Attributes:
        config: the model.
        base: what the target asks for. Only matrices of integers have a choice.
        schemes: by the matrix's name; a tied table, stored once, is called as the embedding.
        scale_bytes: size of a group's scale.
    """

    config: QwenConfig
    base: Formats
    schemes: Mapping[str, tuple[Scheme, ...]]
    scale_bytes: int

    @property
    def fewest_bytes(self) -> int:
        """The smallest budget that can be kept."""
        return fewest_bytes(self._options(self.expected_losses()))

    @property
    def most_bytes(self) -> int:
        """The budget from which on nothing is gained."""
        return most_bytes(self._options(self.expected_losses()))

    @property
    def weights(self) -> int:
        """How many numbers there are in all matrices."""
        return sum(rows * columns for rows, columns in self._shapes().values())

    def nbytes(self, formats: Formats) -> int:
        """Returns what the matrices that have a choice take."""
        return sum(formats[name].nbytes(*shape, self.scale_bytes) for name, shape in self._shapes().items())

    def spend(self, budget: int, losses: Losses | None = None) -> Formats:
        """Chooses formats within a budget.

        Args:
            budget: bytes for all matrices that have a choice; at least `fewest_bytes`.
            losses: what was measured; what is to be expected of any matrix when absent.
        """
        chosen = spend(self._options(losses or self.expected_losses()), budget)
        formats = dict(self.base) | {name: option.scheme for name, option in chosen.items()}
        if self._tied:
            formats[LM_HEAD] = formats[EMBEDDING]
        return formats

    def expected_losses(self) -> Losses:
        """Returns what formats cost if weights are normally distributed and all equally important."""
        return {
            name: {scheme: rows * columns * _expected_error(scheme) for scheme in self.schemes[name]}
            for name, (rows, columns) in self._shapes().items()
        }

    @property
    def _tied(self) -> bool:
        return self.config.tie_word_embeddings and shares_embedding(self.base)

    def _shapes(self) -> dict[str, tuple[int, int]]:
        matrices = stored_matrices(self.config, self.base)
        return {name: shape for name, shape, _ in matrices if name in self.schemes}

    def _file_bytes(self, scheme: Scheme, shape: tuple[int, int]) -> int:
        """Returns what a matrix takes in the data file, with the gaps behind its tensors."""
        parts = scheme.part_bytes(*shape, self.scale_bytes)
        return sum(aligned(nbytes, alignment(nbytes)) for nbytes in parts)

    def _options(self, losses: Losses) -> dict[str, list[Option]]:
        return {
            name: [
                Option(scheme, self._file_bytes(scheme, shape), losses[name][scheme])
                for scheme in self.schemes[name]
            ]
            for name, shape in self._shapes().items()
        }


def choices_for(
    config: QwenConfig, base: Formats, *, bits: Iterable[int], kinds: Collection[bool], scale_bytes: int
) -> Choices:
    """Returns what there is to choose from.

    Args:
        config: the model.
        base: what the target asks for.
        bits: which the provider can multiply with.
        kinds: True if grids may be symmetric, False if they may have zero points.
        scale_bytes: size of a group's scale.
    """
    schemes = {}
    for name, (_, columns), asked in stored_matrices(config, base):
        if asked.is_integer:
            table = name in (EMBEDDING, LM_HEAD)
            schemes[name] = tuple(
                Scheme(count, size, symmetric)
                for count in bits
                for size in GROUP_SIZES
                # Zero points gain nothing at 8 bits. Tables of 2 bits cannot be looked up everywhere.
                for symmetric in (kinds if count < 8 or True not in kinds else (True,))
                if columns % size == 0 and not (table and count < 4)
            )
    return Choices(config, base, {name: found for name, found in schemes.items() if found}, scale_bytes)


def _expected_error(scheme: Scheme) -> float:
    """Returns the variance of rounding normally distributed weights, in units of theirs.

    A step is the range of a group over the number of steps, and the range grows with the logarithm of the
    group's size. A symmetric grid spans twice the larger extreme.
    """
    extreme = math.sqrt(2 * math.log(scheme.group_size))
    step = (2.2 if scheme.symmetric else 2.0) * extreme / scheme.maximum
    return step**2 / 12
