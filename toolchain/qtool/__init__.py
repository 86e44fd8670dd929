"""Compile small Qwen models into ONNX artifacts for one hardware target.

import qtool
artifact = qtool.build("Qwen/Qwen2.5-0.5B-Instruct", target="arm64-int4")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtool.pipeline import Artifact, build

__all__ = ["Artifact", "build"]


def __getattr__(name: str) -> Any:
    """Imports the pipeline when it is first asked for, so that the command line starts quickly."""
    if name in __all__:
        from qtool import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
