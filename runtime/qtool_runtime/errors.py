"""Every error a user can meet, with the exit code the command line gives it.

An error names the bad value, the valid set and the next step: the first two in the message, the last in
the hint. `qtool` (the compiler) adds its own classes to this family in `qtool.errors`.
"""

from __future__ import annotations


class QtoolError(Exception):
    """Base of all errors that are reported to a user without a traceback.

    Args:
        message: what is wrong, with the bad value and what would be valid.
        hint: what to do next; empty when the message already says it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ArtifactError(QtoolError):
    """A folder is not an artifact, is incomplete, was altered, or is of another format version."""

    exit_code = 7


class KvFileError(ArtifactError):
    """A file of keys and values is malformed, damaged or of another model, or cannot be read or written."""


class IncompatibleRuntimeError(QtoolError):
    """The artifact is whole, but the installed onnxruntime or its providers cannot honour it."""

    exit_code = 8


class GenerationError(QtoolError):
    """A generation request is invalid or cannot go on (bad option, context limit, closed session)."""

    exit_code = 9


class ContextLimitError(GenerationError):
    """The prompt, or prompt and answer together, would pass the planned context length."""


class MissingExtraError(QtoolError):
    """An optional dependency is not installed; the hint names the extra that brings it."""

    exit_code = 10
