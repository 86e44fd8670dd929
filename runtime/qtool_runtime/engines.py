"""Which inference engines there are, and how each opens an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qtool_runtime.errors import GenerationError

if TYPE_CHECKING:
    from qtool_runtime.engine import Engine
    from qtool_runtime.manifest import Manifest
    from qtool_runtime.threads import Threads

ENGINES = ("onnxruntime", "genai")


def check_engine(name: str) -> str:
    """Returns the name.

    Raises:
        GenerationError: there is no such engine.
    """
    if name not in ENGINES:
        raise GenerationError(f"engine is {name!r}; valid: {', '.join(ENGINES)}")
    return name


def open_engine(
    name: str, folder: Path, manifest: Manifest, *, provider: str | None, threads: Threads, context: int
) -> Engine:
    """Opens the model file of an artifact whose files are checked.

    Args:
        name: one of `ENGINES`. Its packages are imported here, and not before.
        folder: the artifact.
        manifest: its manifest.
        provider: where to run; None for where the artifact was built for.
        threads: CPU threads of the kernels.
        context: longest sequence, in tokens.

    Raises:
        MissingExtraError: the engine is not installed.
        IncompatibleRuntimeError: the installed engine cannot run the artifact, or not on that provider.
        ArtifactError: the model file is not the one that the manifest describes.
    """
    if name == "genai":
        from qtool_runtime.genai import open_genai

        return open_genai(folder, manifest, provider, threads, context)
    from qtool_runtime.onnx_engine import open_onnxruntime

    return open_onnxruntime(folder, manifest, provider, threads, context)
