"""What the installed onnxruntime can run; the tests are also run with the oldest one that is supported."""

from __future__ import annotations

from importlib.metadata import version

import pytest


def require_2_bits() -> None:
    """Skips the test where the CPU kernel refuses matrices of 2 bits, or takes 200 times as long."""
    if tuple(int(part) for part in version("onnxruntime").split(".")[:2]) < (1, 28):
        pytest.skip("before 1.28, onnxruntime has no kernel for matrices of 2 bits")


def require_int8_kv_cache(engine: str = "onnxruntime") -> None:
    """Skips the test where the CPU kernel, or the engine genai, takes float keys and values only."""
    if tuple(int(part) for part in version("onnxruntime").split(".")[:2]) < (1, 27):
        pytest.skip("before 1.27, onnxruntime has no kernel for an int8 KV cache")
    if engine == "genai":
        genai = version("onnxruntime-genai")
        if tuple(int(part) for part in genai.split(".")[:2]) < (0, 16):
            pytest.skip("before 0.16, onnxruntime-genai ends the process at an int8 KV cache")
