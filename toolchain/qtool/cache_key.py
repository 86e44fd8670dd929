"""What an artifact is made from, as one digest: two builds of the same key give the same artifact."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import qtool
import qtool_runtime
import qtool_targets
from qtool.checkpoint import Checkpoint
from qtool.jobs import Job
from qtool.olive.settings import PACKAGES

_LIBRARIES = ("gguf", "numpy", "onnx", "onnx-ir", "protobuf", "tokenizers")
_EXPORTERS = {"optimum": ("optimum", "optimum-onnx", "onnxscript", "torch", "transformers")}
_MEASURING = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "threadpoolctl")


def job_key(job: Job) -> str:
    """Returns the SHA-256 (hex) of all that a build depends on: source, target, choices, code and libraries.

    Reads the weight files, for their SHA-256.
    """
    measured = job.calibration is not None or job.system_prompt is not None or job.evaluation is not None
    libraries = _LIBRARIES + _EXPORTERS.get(job.exporter, ())
    if job.recipe.olive_passes:
        libraries += PACKAGES
    document = {
        "source": _source(job.checkpoint),
        "target": job.target.to_dict(),
        "context": job.context,
        "exporter": job.exporter,
        "recipe": asdict(job.recipe),
        "formats": {name: asdict(scheme) for name, scheme in job.formats.items()},
        "budget": job.budget and job.budget.nbytes,
        "calibration": job.calibration and job.calibration.sha256,
        "system_prompt": job.system_prompt and job.system_prompt.text,
        "evaluation": _evaluation(job),
        "code": _code(),
        "python": platform.python_version(),
        "libraries": _versions(libraries + _MEASURING if measured else libraries),
        # What comes from running the model depends on the kernels for this processor.
        "processor": _processor() if measured else None,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what identifies the source, and the digests of all that is read of it."""
    documents = {}
    if not all(name.endswith(".gguf") for name in checkpoint.sha256()):  # such a file holds everything
        files = checkpoint.tokenizer_files()
        documents = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {
        "name": checkpoint.name,
        "kind": checkpoint.kind,
        "id": checkpoint.id,
        "revision": checkpoint.revision,
        "config": repr(checkpoint.config),
        "quantization": repr(checkpoint.quantization),
        "weights": checkpoint.sha256(),
        "documents": documents,
    }


def _evaluation(job: Job) -> dict[str, Any] | None:
    if job.evaluation is None:
        return None
    text = job.evaluation.text
    return {"text": text and text.sha256, "tokens": job.evaluation.tokens}


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def _code() -> str:
    """Returns the digest of qtool's own code: the version alone does not tell one checkout from another."""
    digest = hashlib.sha256()
    for path in _code_files():
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _code_files() -> Iterator[Path]:
    for package in (qtool, qtool_runtime, qtool_targets):
        folder = Path(package.__file__ or "").parent
        yield from sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".toml", ".txt"))


def _processor() -> list[str]:
    """Returns what tells processors apart for which libraries have different kernels."""
    known = [platform.machine(), platform.processor()]
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return known
    return known + sorted(
        set(re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*", text, re.MULTILINE))
    )
