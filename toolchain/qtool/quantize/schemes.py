"""How one weight matrix is stored: a frozen record, and what a target asks for each kind of matrix."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qtool.errors import UnsupportedModelError
from qtool_targets import Target


class Role(StrEnum):
    """Kinds of weight matrices that a target can treat differently."""

    ATTENTION = "attention"
    MLP = "mlp"
    EMBEDDING = "embedding"
    LM_HEAD = "lm_head"


@dataclass(frozen=True)
class Scheme:
    """Bits and grouping of one matrix of shape (out_features, in_features).

    For 4 and 8 bits, `group_size` weights along the input dimension share a scale and, unless `symmetric`,
    a zero point: weight = (q - zero_point) * scale, with q in [0, 2**bits - 1]. A symmetric scheme has the
    fixed zero point 2**(bits - 1). 16 and 32 bits are plain floats without groups.
    """

    bits: int
    group_size: int = 32
    symmetric: bool = False
    algorithm: str = "rtn"

    @property
    def is_integer(self) -> bool:
        """True for grouped integers, False for plain floats."""
        return self.bits <= 8

    @property
    def loses_by_rounding(self) -> bool:
        """True for so few bits that rounding each weight to nearest costs quality."""
        return self.bits < 8

    @property
    def middle(self) -> int:
        """The zero point of a symmetric scheme."""
        return 1 << (self.bits - 1)

    @property
    def maximum(self) -> int:
        """The largest stored integer."""
        return (1 << self.bits) - 1

    def check_columns(self, tensor: str, columns: int) -> None:
        """Refuses a matrix whose rows are not whole groups.

        Args:
            tensor: its name, for the error.
            columns: input features.

        Raises:
            UnsupportedModelError: the group size does not divide `columns`.
        """
        if self.is_integer and columns % self.group_size:
            raise UnsupportedModelError(
                f"the tensor {tensor} has {columns} input features, which the group size {self.group_size}"
                " does not divide",
                hint="Choose a target with another group size (16, 32, 64 or 128).",
            )

    def nbytes(self, rows: int, columns: int, scale_bytes: int) -> int:
        """Returns the bytes of a (rows, columns) matrix with its scales and zero points.

        Args:
            rows: output features.
            columns: input features.
            scale_bytes: size of one scale (4 for float32, 2 for float16).
        """
        return sum(self.part_bytes(rows, columns, scale_bytes))

    def part_bytes(self, rows: int, columns: int, scale_bytes: int) -> tuple[int, ...]:
        """Returns the bytes of the tensors that a matrix is stored as: weights, then scales, zero points."""
        weights = rows * columns * self.bits // 8
        if not self.is_integer:
            return (weights,)
        groups = columns // self.group_size
        scales, zero_points = rows * groups * scale_bytes, rows * -(-groups * self.bits // 8)
        return (weights, scales) if self.symmetric else (weights, scales, zero_points)


def scheme_for(target: Target, role: Role, taken: Scheme | None = None) -> Scheme:
    """Returns how `target` stores a matrix of the kind `role`.

    Args:
        target: the profile.
        role: kind of matrix.
        taken: the scheme that the source has the matrix in already. Its integers are taken over, whatever
            number of bits the target asks for, unless that is plain floats.
    """
    weights = target.weights
    special = {Role.EMBEDDING: weights.embedding_bits, Role.LM_HEAD: weights.lm_head_bits}.get(role)
    asked = Scheme(special or weights.bits, weights.group_size, weights.symmetric)
    return taken if taken is not None and asked.is_integer else asked


def role_of(tensor: str) -> Role | None:
    """Returns the kind of matrix that a Hugging Face tensor name stands for, or None (norms, biases)."""
    if tensor == "model.embed_tokens.weight":
        return Role.EMBEDDING
    if tensor == "lm_head.weight":
        return Role.LM_HEAD
    if tensor.endswith("_proj.weight"):
        return Role.ATTENTION if ".self_attn." in tensor else Role.MLP
    return None
