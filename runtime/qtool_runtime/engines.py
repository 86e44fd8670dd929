"""Which inference engines there are, and how each opens an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qtool_runtime.errors import GenerationError

if TYPE_CHECKING:
    from qtool_runtime.engine import Engine, EngineOptions
    from qtool_runtime.manifest import Manifest

ENGINES = ("onnxruntime", "genai")


def check_engine(name: str) -> str:
    """Returns the name.

    Raises:
        GenerationError: there is no such engine.
    """
    if name not in ENGINES:
        raise GenerationError(f"engine is {name!r}; valid: {', '.join(ENGINES)}")
    return name


def open_engine(name: str, folder: Path, manifest: Manifest, options: EngineOptions) -> Engine:
    """Opens the model file of an artifact whose files are checked.

    Args:
        name: one of `ENGINES`. Its packages are imported here, and not before.
        folder: the artifact.
        manifest: its manifest.
        options: how it is to run.

    Raises:
        GenerationError: the engine or this processor has no such kernels, or the engine no `exact_drafts`.
        MissingExtraError: the engine, or the kernel pack that was asked for, is not installed.
        IncompatibleRuntimeError: the installed engine cannot run the artifact, or not on that provider.
        ArtifactError: the model file is not the one that the manifest describes.
    """
    if name == "genai":
        from qtool_runtime.genai import open_genai

        return open_genai(folder, manifest, options)
    from qtool_runtime.onnx_engine import open_onnxruntime

    return open_onnxruntime(folder, manifest, options)
