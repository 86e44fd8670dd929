"""Is an artifact whole, unaltered, and what its manifest says it is?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qtool_runtime import kv_file, manifest
from qtool_runtime.compatibility import PROVIDERS, check_compatibility, import_onnxruntime
from qtool_runtime.errors import ArtifactError, QtoolError
from qtool_runtime.integrity import find_problems
from qtool_runtime.kv_cache import CacheLayout
from qtool_runtime.manifest import BakedPrompt, Manifest
from qtool_runtime.saved_prefix import read_text

PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: str
    """`PASSED`, `FAILED`, or `SKIPPED` where this machine cannot tell."""
    detail: str


@dataclass(frozen=True)
class Report:
    """All checks of one artifact."""

    artifact: str
    checks: tuple[Check, ...]

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == FAILED)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain data."""
        return asdict(self) | {"passed": not self.problems}


def verify(folder: Path) -> Report:
    """Checks manifest, files, graph and the installed onnxruntime.

    Args:
        folder: the artifact.

    Returns:
        A report; a manifest that cannot be read is a failed check like any other.
    """
    try:
        document = manifest.read(folder)
    except ArtifactError as error:
        return Report(str(folder), (Check("manifest", FAILED, error.message),))
    checks = [Check("manifest", PASSED, f"format version {document.format_version}, unaltered")]
    problems = find_problems(folder, document, hashes=True)
    if problems:
        checks += [Check("file", FAILED, f"{problem.path} {problem.detail}") for problem in problems]
    else:
        checks.append(Check("files", PASSED, f"{len(document.files)} files have their sizes and SHA-256"))
        checks += [_graph(folder, document), _runtime(document)]
        if document.baked_prompt:
            checks.append(_system_prompt(folder, document, document.baked_prompt))
    return Report(str(folder), tuple(checks))


def _graph(folder: Path, document: Manifest) -> Check:
    """Compares the graph's operators and external data with the manifest; needs the extra `build`."""
    try:
        import onnx_ir as ir
    except ModuleNotFoundError:
        return Check("graph", SKIPPED, "onnx-ir is not installed (pip install 'qtool-edge[build]')")
    from qtool.artifact.describe import operator_sets

    try:
        model = ir.load(folder / document.graph.file)
        operators = operator_sets(model)
    except Exception as error:  # a parser of untrusted bytes: protobuf's and onnx-ir's errors share no base
        return Check("graph", FAILED, f"{document.graph.file} is not a graph: {error}")
    if operators != document.operators:
        return Check("graph", FAILED, f"{document.graph.file} has other operators than the manifest lists")
    sizes = {entry.path: entry.size for entry in document.files}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            start, size = tensor.offset or 0, sizes.get(str(tensor.location), 0)
            end = start + (tensor.nbytes if tensor.length is None else tensor.length)
            if not 0 <= start <= end <= size:
                place = f"bytes {start} to {end} of {tensor.location}"
                return Check("graph", FAILED, f"{tensor.name} lies at {place}, which has {size} bytes")
    count = sum(sum(operators.operators.values()) for operators in document.operators)
    return Check("graph", PASSED, f"{count} nodes, the operators that the manifest lists")


def _runtime(document: Manifest) -> Check:
    """Asks the installed onnxruntime; one without the target's provider cannot answer."""
    try:
        available = import_onnxruntime().get_available_providers()
        provider = PROVIDERS.get(document.graph.provider)
        if provider is not None and provider.onnxruntime_name not in available:
            check_compatibility(document, "cpu")
            return Check("runtime", SKIPPED, f"this machine's onnxruntime has no {provider.onnxruntime_name}")
        wanted = check_compatibility(document).onnxruntime_name
    except QtoolError as error:
        return Check("runtime", FAILED, error.message)
    return Check(
        "runtime", PASSED, f"onnxruntime is {document.graph.minimum_onnxruntime} or newer and has {wanted}"
    )


def _system_prompt(folder: Path, document: Manifest, baked: BakedPrompt) -> Check:
    """Compares the baked system prompt with the model that the manifest describes."""
    provider = PROVIDERS.get(document.graph.provider, PROVIDERS["cpu"])
    model = document.kv_digest(document.graph.provider)
    try:
        layout = CacheLayout.from_manifest(document, provider.device)
        found = len(kv_file.read(folder / baked.kv_file, model, layout, document.context).token_ids)
        read_text(folder / baked.text_file)
    except ArtifactError as error:
        return Check("system prompt", FAILED, error.message)
    if found != baked.tokens:
        detail = f"{baked.kv_file} holds {found} tokens instead of {baked.tokens}"
        return Check("system prompt", FAILED, detail)
    return Check("system prompt", PASSED, f"{found} tokens, of this model")
