"""The compiler's errors and their exit codes (see `qtool_runtime.errors` for the base and the runtime's).

Exit codes: 0 done, 1 unexpected, 2 wrong usage (click, and `OptionError`), 3 source, 4 unsupported model,
5 target, 6 budget, 7 artifact, 8 incompatible runtime, 9 generation, 10 missing extra, 11 output, 12 engine
of a benchmark, 13 unhealthy, 14 quality gate, 15 emulation, 130 interrupted.
"""

from __future__ import annotations

from qtool_runtime.errors import (
    ArtifactError,
    ContextLimitError,
    GenerationError,
    IncompatibleRuntimeError,
    MissingExtraError,
    QtoolError,
)

__all__ = [
    "ArtifactError",
    "BudgetError",
    "ContextLimitError",
    "EmulationError",
    "EngineError",
    "GateError",
    "GenerationError",
    "IncompatibleRuntimeError",
    "MissingExtraError",
    "OptionError",
    "OutputError",
    "QtoolError",
    "SourceError",
    "UnhealthyError",
    "UnsupportedModelError",
]


class OptionError(QtoolError):
    """An option has a value that it cannot have, or does not go together with the others."""

    exit_code = 2


class SourceError(QtoolError):
    """A checkpoint is missing, truncated, malformed, unsafe to read, or lacks a tensor."""

    exit_code = 3


class UnsupportedModelError(QtoolError):
    """The checkpoint is readable, but its configuration asks for something that is not implemented."""

    exit_code = 4


class BudgetError(QtoolError):
    """The planned artifact does not fit the target's memory budget."""

    exit_code = 6


class OutputError(QtoolError):
    """The output folder exists already, or cannot be written (no space, no permission)."""

    exit_code = 11


class EngineError(QtoolError):
    """A benchmark cannot go on: an engine does not start, fails, or cannot be compared."""

    exit_code = 12


class UnhealthyError(QtoolError):
    """A loaded artifact failed a health check."""

    exit_code = 13


class GateError(QtoolError):
    """A built artifact is larger, or less like its source, than was asked for."""

    exit_code = 14


class EmulationError(QtoolError):
    """An emulated processor cannot be had, takes too long, or runs an artifact otherwise than this one."""

    exit_code = 15
