"""The model that artifacts are compared with: their source, in float32."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import qtool_targets
from qtool.checkpoint import Checkpoint
from qtool.checkpoint.weight import Weight
from qtool.errors import OutputError, SourceError
from qtool.evaluate.weights import artifact_weights
from qtool.jobs import Job, open_source
from qtool.pipeline import Progress, run_jobs
from qtool.plan import Plan, make_plan
from qtool.quantize.formats import formats_for
from qtool_runtime import manifest
from qtool_runtime.integrity import check_files
from qtool_runtime.manifest import Manifest
from qtool_runtime.text import Tokenizer

PROVIDER = "cpu"
"""The reference runs on the processor, wherever artifacts run: every machine has one, and it rounds least."""
_TARGET = "x64-fp32"
"""Plain float32 weights and activations; nothing in the graph is particular to x64."""


@dataclass(frozen=True)
class Reference:
    """A model in float32 that is not loaded, and perhaps not built yet.

    Attributes:
        name: of the model.
        is_nano: whether it is the model that ships with qtool.
        vocab_size: numbers in a row of its logits.
        context: longest sequence that it can read, in tokens.
        tokenizer: its tokenizer.
        weights: returns its tensors, by their Hugging Face names.
        folder: gives an artifact of it with room for so many tokens, building it if there is none.
    """

    name: str
    is_nano: bool
    vocab_size: int
    context: int
    tokenizer: Tokenizer
    weights: Callable[[], Mapping[str, Weight]]
    folder: Callable[[int], AbstractContextManager[Path]]


def open_reference(source: str | Path | None, *, threads: int, progress: Progress) -> Reference:
    """Opens the model to compare with; no weight is read.

    Args:
        source: anything that `qtool build` takes, None for the embedded model, or an artifact in float32.
        threads: threads of a build.
        progress: is told about a build.

    Raises:
        ArtifactError: an artifact is not whole.
        SourceError: a source cannot be read, or an artifact is not in float32.
        UnsupportedModelError: it is a model of a kind that is not implemented.
    """
    if source is not None and (Path(source) / manifest.FILE_NAME).is_file():
        return _artifact_reference(Path(source))
    return checkpoint_reference(open_source(source), threads=threads, progress=progress)


def checkpoint_reference(checkpoint: Checkpoint, *, threads: int, progress: Progress) -> Reference:
    """Returns a reference that is built, in a temporary folder, when it is needed."""
    config = checkpoint.config
    return Reference(
        name=checkpoint.name,
        is_nano=checkpoint.kind == "embedded",
        vocab_size=config.vocab_size,
        context=config.max_position_embeddings,
        tokenizer=Tokenizer.from_bytes(checkpoint.tokenizer_files()["tokenizer.json"], checkpoint.name),
        weights=lambda: checkpoint.weights,
        folder=lambda context: _float32_build(checkpoint, context, threads, progress),
    )


def _artifact_reference(path: Path) -> Reference:
    document = manifest.read(path)
    check_files(path, document, hashes=False, extra=False)
    _check_float32(path, document)
    return Reference(
        name=document.name,
        is_nano=document.source.kind == "embedded",
        vocab_size=document.model.vocab_size,
        context=document.context,
        tokenizer=Tokenizer.from_file(path / "tokenizer.json"),
        weights=cache(lambda: artifact_weights(path, document)),
        folder=lambda context: nullcontext(path),
    )


def _check_float32(path: Path, document: Manifest) -> None:
    """Refuses an artifact that has lost something itself.

    Raises:
        SourceError: a matrix, or the cache, is stored in another type.
    """
    lossy = [f"{group.group} in {group.bits} bits" for group in document.quantization if group.bits != 32]
    if document.kv_cache.dtype != "float32":
        lossy.append(f"a KV cache in {document.kv_cache.dtype}")
    if lossy:
        raise SourceError(
            f"{path} is no reference: it has {', '.join(lossy)}; a reference is in float32",
            hint=f"Give the model that it was built from, or an artifact for the target {_TARGET}.",
        )


def check_disk(checkpoint: Checkpoint, context: int, threads: int) -> None:
    """Refuses a copy of a model in float32 for which there is no room.

    Raises:
        OutputError: the disk has not enough space.
    """
    needed = _plan(checkpoint, context, threads).disk
    parent = Path(tempfile.gettempdir())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise OutputError(
            f"comparing with {checkpoint.name} takes {needed / 1e6:,.0f} MB of disk for a copy in float32;"
            f" {parent} has {free / 1e6:,.0f} MB left",
            hint="Free some space, or set TMPDIR to a folder on another disk.",
        )


@contextmanager
def _float32_build(checkpoint: Checkpoint, context: int, threads: int, progress: Progress) -> Iterator[Path]:
    """Builds a model in float32, and removes it at the end.

    Raises:
        OutputError: the disk has no room for it.
    """
    check_disk(checkpoint, context, threads)
    with tempfile.TemporaryDirectory(prefix="qtool-reference-") as folder:
        output = Path(folder) / "reference"
        target, plan = qtool_targets.load(_TARGET), _plan(checkpoint, context, threads)
        formats = formats_for(checkpoint.config, target)
        job = Job(checkpoint, target, context, "native", output, plan, formats)
        run_jobs([job], ignore_budget=True, threads=threads, progress=progress)
        yield output


def _plan(checkpoint: Checkpoint, context: int, threads: int) -> Plan:
    target = qtool_targets.load(_TARGET)
    return make_plan(checkpoint.config, target, context, checkpoint.tokenizer_bytes, threads)
