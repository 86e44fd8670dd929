"""nano: a real Qwen3 model small enough to ship inside the package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["model_path"]


def model_path() -> Path:
    """The folder of the shipped checkpoint, in Hugging Face layout."""
    return Path(__file__).with_name("model")
