"""Kernels for qtool's runtime: an operator library for ONNX Runtime, and what it can do on this CPU.

Register `library_path()` with `onnxruntime.SessionOptions.register_custom_ops_library`. Its operators are in
the domain "qtool.kernels", version 1. MatMulNBits and GroupQueryAttention have the inputs, outputs and
attributes of those of com.microsoft that they stand in for; FusedMatMulNBits is described in
src/op_fused_matmul_nbits.h.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Mapping
from pathlib import Path

__version__ = "0.1.0"
__all__ = [
    "SelfTestError",
    "__version__",
    "instruction_sets",
    "library_path",
    "select",
    "self_test",
    "supports",
]

_MESSAGE_BYTES = 1024

_ATTENTION_WITHOUT = {"local_window_size": -1, "rotary_interleaved": 0, "smooth_softmax": 0, "qk_output": 0}
"""Attributes of GroupQueryAttention that must be left out, or have these values."""


class SelfTestError(Exception):
    """A kernel of an instruction set does not compute what the portable one does."""


def library_path() -> Path:
    """Returns the shared library's path.

    Raises:
        FileNotFoundError: this package was not installed but only copied: it has no compiled library.
    """
    name = "libqtool_kernels" + (".dll" if sys.platform == "win32" else ".so")
    path = Path(__file__).resolve().parent / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; install qtool-kernels with pip to compile it")
    return path


def instruction_sets() -> tuple[str, ...]:
    """Returns the instruction sets that this CPU and this build can run, best first, "portable" last."""
    names: list[str] = []
    while name := _library().qtool_kernels_instruction_set(len(names)):
        names.append(name.decode())
    return tuple(names)


def select(name: str) -> None:
    """Chooses the instruction set of all kernels that are created from now on, in this process.

    Kernels are created with a session and keep what was chosen then. Without a choice it is the best one.

    Raises:
        ValueError: there is no such instruction set here.
    """
    if _library().qtool_kernels_select(name.encode()) != 0:
        raise _unknown(name)


def self_test(name: str) -> None:
    """Compares all kernels of an instruction set with the portable ones on small data, in milliseconds.

    Raises:
        SelfTestError: one of them is wrong.
        ValueError: there is no such instruction set here.
    """
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    result = _library().qtool_kernels_self_test(name.encode(), message, _MESSAGE_BYTES)
    if result == 1:
        raise _unknown(name)
    if result != 0:
        raise SelfTestError(f"{name}: {message.value.decode()}")


def supports(operator: str, attributes: Mapping[str, float]) -> bool:
    """Returns whether a node of com.microsoft can be computed here instead.

    What its inputs are is checked when its kernel is created: weights must be initializers, without `g_idx`.

    Args:
        operator: its type.
        attributes: those of its attributes that are numbers.
    """
    if operator == "MatMulNBits":
        bits, block_size = attributes.get("bits", 4), attributes.get("block_size", 0)
        if not (isinstance(bits, int) and isinstance(block_size, int)):
            return False
        return bool(_library().qtool_kernels_takes_weights(bits, block_size))
    if operator == "GroupQueryAttention":
        return all(attributes.get(name, value) == value for name, value in _ATTENTION_WITHOUT.items())
    return False


def _unknown(name: str) -> ValueError:
    return ValueError(f"no instruction set {name!r} here; valid: {', '.join(instruction_sets())}")


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    library.qtool_kernels_instruction_set.argtypes = [ctypes.c_size_t]
    library.qtool_kernels_instruction_set.restype = ctypes.c_char_p
    library.qtool_kernels_takes_weights.argtypes = [ctypes.c_int64, ctypes.c_int64]
    library.qtool_kernels_select.argtypes = [ctypes.c_char_p]
    library.qtool_kernels_self_test.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
    return library
