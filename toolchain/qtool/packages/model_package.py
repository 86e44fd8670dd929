"""Several artifacts of one model as one ONNX Runtime model package: a variant for each kind of machine.

A package is a folder with a `manifest.json` (schema 1.0), which names one component and its variants. ONNX
Runtime chooses the variant whose execution provider the application asks for. Here each variant is an
artifact, whole and unaltered: qtool's runtime loads it too, and so does what reads `genai_config.json`.

The format is described in ONNX Runtime's repository, in model_package/README.md and
onnxruntime/core/session/model_package/README.md; what onnxruntime-genai expects of it, in its own repository,
in docs/model_package.md.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qtool.artifact.folder import check_destination, check_outside, new_folder
from qtool.packages import checked, file_names, target_name
from qtool_runtime import manifest
from qtool_runtime.compatibility import PROVIDERS
from qtool_runtime.errors import ArtifactError
from qtool_runtime.integrity import sha256_of
from qtool_runtime.manifest import Manifest

SCHEMA_VERSION = "1.0"
COMPONENT = "model"
"""onnxruntime-genai takes a package of exactly one component, by convention of this name."""
_PRODUCER = "qtool-edge"


@dataclass(frozen=True)
class ModelPackage:
    """A package that was written."""

    path: Path
    variants: dict[str, str]
    """Name of each variant, and ONNX Runtime's name of its execution provider."""
    bytes: int


def write_model_package(artifacts: Sequence[Path], destination: Path, *, force: bool = False) -> ModelPackage:
    """Writes artifacts of one model as a model package; the same artifacts give the same bytes.

    Args:
        artifacts: one for each execution provider; variants are called after their targets.
        destination: the folder to write; appears whole or not at all.
        force: replace a package that is there.

    Raises:
        ArtifactError: one of them is no artifact or damaged, or they do not go together.
        OutputError: the destination exists or cannot be written.
    """
    check_destination(destination, force, _why_not_package)
    variants = _variants(artifacts)
    for artifact in artifacts:
        check_outside(destination, artifact)
    size = 0
    with new_folder(destination, force=force, why_not_ours=_why_not_package) as folder:
        for name, (artifact, document) in variants.items():
            for file in file_names(document):
                target = folder / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact / file, target)
                size += target.stat().st_size
        text = json.dumps(_manifest(variants), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        size += (folder / manifest.FILE_NAME).write_bytes(text.encode())
    providers = {name: _provider(document) for name, (_, document) in variants.items()}
    return ModelPackage(destination, providers, size)


def _variants(artifacts: Sequence[Path]) -> dict[str, tuple[Path, Manifest]]:
    """Reads the artifacts, by the names of their targets, and refuses those that do not go together."""
    variants: dict[str, tuple[Path, Manifest]] = {}
    by_provider: dict[str, str] = {}
    for artifact in artifacts:
        document = checked(artifact)
        name, provider = target_name(document), _provider(document)
        if name in variants:
            raise ArtifactError(
                f"{variants[name][0]} and {artifact} were both built for the target {name!r}",
                hint="A package has one variant for each target: give one of them.",
            )
        if provider in by_provider:
            raise ArtifactError(
                f"the targets {by_provider[provider]!r} and {name!r} both run on {provider}; of two such"
                " variants, onnxruntime takes the first on every machine",
                hint="Make a package for each.",
            )
        variants[name], by_provider[provider] = (artifact, document), name
    (first, one), *rest = variants.values()
    for other, document in rest:
        if (document.source, document.model) != (one.source, one.model):
            raise ArtifactError(
                f"{first} and {other} are of different models: {_source(one)} and {_source(document)}",
                hint="Build them from one source: qtool build MODEL --target all.",
            )
    return dict(sorted(variants.items()))


def _source(document: Manifest) -> str:
    digest = ", ".join(value[:12] for value in document.source.files.values())
    return f"{document.source.id} (SHA-256 {digest})"


def _provider(document: Manifest) -> str:
    provider = PROVIDERS.get(document.graph.provider)
    if provider is None:
        raise ArtifactError(
            f"{document.name} runs on {document.graph.provider!r}, which has no name in ONNX Runtime; known:"
            f" {', '.join(PROVIDERS)}",
        )
    return provider.onnxruntime_name


def _manifest(variants: dict[str, tuple[Path, Manifest]]) -> dict[str, Any]:
    """Returns the package's own manifest.

    Variants name no device: onnxruntime compares one with the devices that the application has listed, and
    with none listed refuses a variant for "cpu" on the CPU.
    """
    (_, one), *_ = variants.values()
    bodies = {
        name: {
            "variant_directory": name,
            "ep": _provider(document),
            "executor_info": {"ort": {"model_file": document.graph.file}},
            "additional_metadata": {
                "context": document.context,
                "manifest_sha256": sha256_of(artifact / manifest.FILE_NAME),
                "minimum_onnxruntime": document.graph.minimum_onnxruntime,
            },
        }
        for name, (artifact, document) in variants.items()
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "package_name": one.name,
        "layout": "portable",
        "components": {COMPONENT: {"variants": bodies}},
        "additional_metadata": {"producer": {"tool": _PRODUCER, "tool_version": version(_PRODUCER)}},
    }


def _why_not_package(path: Path, names: set[str]) -> str | None:
    """Says why a folder is not a package, or holds more than that."""
    try:
        document = json.loads((path / manifest.FILE_NAME).read_bytes())
        ours = document["additional_metadata"]["producer"]["tool"] == _PRODUCER
        listed = set(document["components"][COMPONENT]["variants"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        ours = False
    if not ours:
        return "is not a model package of qtool's"
    foreign = sorted(names - listed - {manifest.FILE_NAME})
    return f"holds {foreign[0]!r}, which is no part of the package" if foreign else None
