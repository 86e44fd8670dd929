"""The one error of this package. It has the attributes of the compiler's errors, without importing them."""

from __future__ import annotations


class TargetError(Exception):
    """A target is unknown, or its file is malformed.

    Args:
        message: what is wrong, with the bad value and the valid set.
        hint: what to do next.
    """

    exit_code = 5

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
