"""Can the installed ONNX Runtime honour an artifact? Asked and answered before a session is created."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from qtool_runtime.errors import ArtifactError, IncompatibleRuntimeError, MissingExtraError
from qtool_runtime.manifest import Manifest

KNOWN_DOMAINS = ("ai.onnx", "com.microsoft")
"""Operator domains that ONNX Runtime's own packages implement. Others need a custom library."""


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes:
        name: what manifests and `load` call it.
        onnxruntime_name: what ONNX Runtime calls it.
        device: whose memory holds the KV cache.
        package: what to install to get it.
        reads_one_behind_others: whether a run reads several tokens at the start of a sequence only, else one:
            DirectML's attention kernel takes the cache for empty in any run of several tokens (source:
            DmlOperatorGroupQueryAttention.cpp of ONNX Runtime).
    """

    name: str
    onnxruntime_name: str
    device: str
    package: str
    reads_one_behind_others: bool = False


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("cpu", "CPUExecutionProvider", "cpu", 'pip install "qtool-edge[cpu]"'),
        Provider("cuda", "CUDAExecutionProvider", "cuda", 'pip install "qtool-edge[cuda]"'),
        Provider("directml", "DmlExecutionProvider", "dml", 'pip install "qtool-edge[directml]"', True),
        # Artifacts for the browser. In Python the cache stays in host memory: correct, not fast.
        Provider("webgpu", "WebGpuExecutionProvider", "cpu", "run the artifact with onnxruntime-web"),
    )
}


def import_onnxruntime() -> Any:
    """Imports ONNX Runtime with its telemetry off.

    Its packages (1.31 for Linux among them) can upload usage events; the environment variable has to be set
    before the import, and the call covers an application that had imported it already.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"onnxruntime is not installed ({error})", hint='Install it: pip install "qtool-edge[cpu]"'
        ) from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def check_compatibility(manifest: Manifest, provider: str | None = None) -> Provider:
    """Checks ONNX Runtime's version, operator domains and execution provider against the manifest.

    Args:
        manifest: the artifact's.
        provider: overrides the one that the artifact was built for; a key of `PROVIDERS`.

    Returns:
        The provider to run on.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        IncompatibleRuntimeError: the installed one is too old, or lacks the provider or an operator domain.
    """
    onnxruntime = import_onnxruntime()
    check_version(str(onnxruntime.__version__), manifest.graph.minimum_onnxruntime)
    for operators in manifest.operators:
        if operators.domain not in KNOWN_DOMAINS:
            raise IncompatibleRuntimeError(
                f"the artifact uses operators of the domain {operators.domain!r} "
                f"({', '.join(sorted(operators.operators)[:5])}); onnxruntime has {', '.join(KNOWN_DOMAINS)}",
                hint="Build the artifact again for a target that this runtime supports.",
            )
    name = manifest.graph.provider if provider is None else provider
    if name not in PROVIDERS:
        raise IncompatibleRuntimeError(f"the provider {name!r} is unknown; known: {', '.join(PROVIDERS)}")
    check_available(PROVIDERS[name])
    return PROVIDERS[name]


def check_available(provider: Provider) -> None:
    """Refuses a provider that the installed onnxruntime does not have.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        IncompatibleRuntimeError: it lacks the provider.
    """
    available = import_onnxruntime().get_available_providers()
    if provider.onnxruntime_name not in available:
        raise IncompatibleRuntimeError(
            f"the artifact needs {provider.onnxruntime_name}; this onnxruntime has {', '.join(available)}",
            hint=f'Get it: {provider.package}; or pass provider="cpu" to run on the CPU, more slowly.',
        )


def check_version(installed: str, minimum: str) -> None:
    """Compares two versions of onnxruntime.

    Raises:
        ArtifactError: `minimum` is not a version.
        IncompatibleRuntimeError: the installed one is older.
    """
    if parse_version(minimum) is None:
        raise ArtifactError(f"the manifest's minimum_onnxruntime is {minimum!r}, which is not a version")
    if (parse_version(installed) or ()) < (parse_version(minimum) or ()):
        raise IncompatibleRuntimeError(
            f"onnxruntime {installed} is installed; the artifact needs {minimum} or later",
            hint=f'Upgrade it: pip install --upgrade "onnxruntime>={minimum}"',
        )


def parse_version(text: str) -> tuple[int, int, int] | None:
    """Returns the first three numbers of a version such as "1.23" or "1.24.0.dev20260101"."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None
