"""From a checkpoint to artifacts, stage by stage. The file to read first.

`build` runs the stages for one or several targets of one model: source, calibrate, export, passes, quantize,
package, evaluate. Export and passes only describe the graph; weights are read, quantized and written in one
streaming pass, each distinct form once. What has to be measured is apart from that: integers of calibrated
matrices are computed before, layer by layer, and wait in a temporary folder; the scales of an int8 KV cache
come after, and, where it is asked for, how close the artifact is to its source.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import qtool_targets
from qtool.artifact.folder import check_destination, new_folder
from qtool.calibration.text import (
    FEWEST_TOKENS,
    FEWEST_TOKENS_FOR_WEIGHTS,
    CalibrationText,
    read_calibration_text,
)
from qtool.checkpoint import Checkpoint, open_checkpoint
from qtool.errors import QtoolError
from qtool.plain_text import PlainText
from qtool.plan import Plan, make_plan
from qtool.quantize.recipes import FAST, Recipe, recipe_called
from qtool_runtime.manifest import Calibration, Manifest
from qtool_targets import Gates, Target, TargetError

if TYPE_CHECKING:
    from qtool.bake import SystemPrompt
    from qtool.quantize.storage import Calibrated

EXPORTERS = ("native", "optimum")

Progress = Callable[[str, int, int], None]
"""(stage, done, total): bytes of weights, tokens of a text, or tasks. Some stages have no
total: it is 0."""


@dataclass(frozen=True)
class Evaluation:
    """How artifacts are compared with their source during a build."""

    text: PlainText | None = None
    """What both read; None for the text that ships with qtool."""
    tokens: int | None = None
    """Predictions to compare; None for the usual number."""


@dataclass(frozen=True)
class Job:
    """One artifact to be built."""

    checkpoint: Checkpoint
    target: Target
    context: int
    exporter: str
    output: Path
    plan: Plan
    recipe: Recipe = FAST
    calibration: CalibrationText | None = None
    """What to measure on; None where nothing is."""
    system_prompt: SystemPrompt | None = None
    """What is baked in, so that conversations with it start sooner."""
    evaluation: Evaluation | None = None
    """How to compare it with its source; None where that is not done."""

    def windows(self) -> NDArray[np.int64] | None:
        """Cuts the calibration text into token ids of shape (windows, tokens)."""
        if self.calibration is None:
            return None
        fewest = FEWEST_TOKENS_FOR_WEIGHTS if self.recipe.calibrates(self.target) else FEWEST_TOKENS
        tokenizer = self.checkpoint.tokenizer_files()["tokenizer.json"]
        return self.calibration.windows(tokenizer, self.context, fewest)


@dataclass(frozen=True)
class Artifact:
    """One artifact that was built."""

    path: Path
    manifest: Manifest

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest itself."""
        return sum(entry.size for entry in self.manifest.files)


def build(
    model: str | Path | None = None,
    *,
    target: str | Path | Target,
    output: str | Path | None = None,
    context: int | None = None,
    exporter: str = "native",
    kv_cache: str | None = None,
    recipe: str = "fast",
    calibration: str | Path | None = None,
    bake_prompt: str | Path | None = None,
    gates: Gates | None = None,
    evaluation: Evaluation | None = None,
    force: bool = False,
    ignore_budget: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compiles a model into an artifact for one target.

    Args:
        model: a Hugging Face id, a folder of safetensors, or a GGUF file; None is the embedded nano model.
        target: a profile, its name, or the path of a TOML file.
        output: folder to write; "./NAME-TARGET" when absent.
        context: tokens to plan for, instead of the target's default.
        exporter: "native", or "optimum" (extra `optimum`).
        kv_cache: type of cached keys and values, instead of the target's: "float32", "float16" or "int8"
            (extra `cpu`).
        recipe: "fast" rounds every weight to nearest; "balanced" calibrates matrices of fewer than 8 bits
            (extra `cpu`); "best" also gives the LM head and the embedding 8 bits.
        calibration: a UTF-8 text to calibrate on; the one that ships with qtool when absent.
        bake_prompt: a UTF-8 text, the system prompt of the application: it is read now, by the compiled model
            (extra `cpu`), so that conversations with it start sooner.
        gates: what the artifact has to reach, instead of the target's own gates. Otherwise the build fails.
        evaluation: compare the artifact with its source, on the artifact's provider, and note the figures in
            its manifest (extra `cpu`). Gates of quality imply it.
        force: replace an artifact that is there.
        ignore_budget: build even if the device's memory budget is exceeded.
        threads: threads of the build; the number of usable processors when absent. Bytes do not depend on it.
        progress: told about every stage.

    Raises:
        QtoolError: one of its subclasses says what is wrong, and what to do.
        TargetError: the target is unknown or malformed.
    """
    jobs = plan_jobs(
        model,
        [target],
        output=output,
        context=context,
        exporter=exporter,
        kv_cache=kv_cache,
        recipe=recipe,
        calibration=calibration,
        bake_prompt=bake_prompt,
        gates=gates,
        evaluation=evaluation,
        threads=threads,
    )
    artifacts = run_jobs(jobs, force=force, ignore_budget=ignore_budget, threads=threads, progress=progress)
    return artifacts[0]


def plan_jobs(
    model: str | Path | None,
    targets: Sequence[str | Path | Target],
    *,
    output: str | Path | None = None,
    context: int | None = None,
    exporter: str = "native",
    kv_cache: str | None = None,
    recipe: str = "fast",
    calibration: str | Path | None = None,
    bake_prompt: str | Path | None = None,
    gates: Gates | None = None,
    evaluation: Evaluation | None = None,
    threads: int | None = None,
    plan_only: bool = False,
) -> list[Job]:
    """Opens the source and plans an artifact for each target; reads no tensor.

    With several targets, `output` is the parent of the folders NAME-TARGET. With `plan_only`, weights
    are neither downloaded nor looked for: a folder with a config.json will do. Such jobs cannot be run.
    """
    if exporter not in EXPORTERS:
        raise QtoolError(f"unknown exporter {exporter!r}; known: {', '.join(EXPORTERS)}")
    chosen = recipe_called(recipe)
    loaded = [
        qtool_targets.with_gates(chosen.apply(_target(item, kv_cache, exporter)), gates or Gates())
        for item in targets
    ]
    text = _calibration_text(loaded, chosen, calibration)
    checkpoint = open_source(model, configuration_only=plan_only)
    prompt = _system_prompt(bake_prompt, checkpoint)
    jobs = []
    for target in loaded:
        tokens = _context(checkpoint, target, context)
        folder = Path(f"{checkpoint.name}-{target.name}")
        if output is not None:
            folder = Path(output) / folder if len(targets) > 1 else Path(output)
        size = checkpoint.tokenizer_bytes
        calibrated = text if _is_calibrated(target, chosen) else None
        plan = make_plan(
            checkpoint.config,
            target,
            tokens,
            size,
            _threads(threads),
            recipe=chosen,
            exporter=exporter,
            system_prompt=prompt,
        )
        measured = evaluation or (Evaluation() if target.gates.ask_for_quality else None)
        jobs.append(
            Job(checkpoint, target, tokens, exporter, folder, plan, chosen, calibrated, prompt, measured)
        )
    return jobs


def run_jobs(
    jobs: Sequence[Job],
    *,
    force: bool = False,
    ignore_budget: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Artifact]:
    """Builds planned artifacts of one model in one pass over its weights."""
    _check(jobs, force=force, ignore_budget=ignore_budget)
    # onnx_ir and what needs it come in here, so that a plan and `--help` stay quick.
    from qtool.artifact.package import Package, write_manifest
    from qtool.bake import bake
    from qtool.calibration.layers import quantize_layers
    from qtool.evaluate.stage import QualityStage
    from qtool.exporters import export
    from qtool.passes import passes_for

    texts = [job.windows() for job in jobs]
    report = progress or (lambda stage, done, total: None)
    quality = QualityStage(jobs, threads=_threads(threads), progress=report)
    with ExitStack() as stack:
        folders = [stack.enter_context(new_folder(job.output, force=force)) for job in jobs]
        packages = []
        for job, windows, folder in zip(jobs, texts, folders, strict=True):
            integers: Calibrated = {}
            if windows is not None and job.recipe.calibrates(job.target):
                report("calibrate", 0, job.plan.calibrated)
                integers = quantize_layers(
                    job.checkpoint,
                    job.target,
                    windows,
                    folder=Path(stack.enter_context(TemporaryDirectory(prefix=".calibrated-", dir=folder))),
                    threads=_threads(threads),
                    progress=lambda done, total: report("calibrate", done, total),
                )
            report("export", 0, 0)
            graph = export(job.checkpoint, job.target, job.context, job.exporter)
            for rewrite in passes_for(job.target, integers):
                rewrite(graph)
            packages.append((Package(job.checkpoint, job.target, job.context, job.exporter, graph), folder))
        Package.write_weights(
            packages, _threads(threads), lambda done, total: report("quantize", done, total)
        )
        manifests = []
        for job, windows, (package, folder) in zip(jobs, texts, packages, strict=True):
            record = None
            if job.calibration is not None and windows is not None:
                record = Calibration(job.calibration.sha256, windows.size)
                if job.target.precision.kv_cache == "int8":
                    report("calibrate", 0, 0)
                    package.calibrate_kv_cache(folder, windows, _threads(threads))
            report("package", 0, 0)
            manifest = package.finish(folder, record)
            if job.system_prompt is not None:
                report("bake", 0, 0)
                write_manifest(folder, manifest)  # the artifact is loaded
                manifest = bake(folder, manifest, job.system_prompt, _threads(threads))
            manifests.append(manifest)
        manifests = quality.run(folders, manifests)
        for folder, manifest in zip(folders, manifests, strict=True):
            write_manifest(folder, manifest)
    return [Artifact(job.output, manifest) for job, manifest in zip(jobs, manifests, strict=True)]


def _check(jobs: Sequence[Job], *, force: bool, ignore_budget: bool) -> None:
    """Refuses what cannot be built, before any work."""
    for job in jobs:
        check_destination(job.output, force)
        if not ignore_budget:
            job.plan.check_budget()
    from qtool.bake import check_bake
    from qtool.calibration.kv_cache import check_onnxruntime
    from qtool.passes import capabilities_for

    for job in jobs:
        capabilities_for(job.target)
    if any(job.calibration for job in jobs):
        check_onnxruntime(int8_kv_cache=any(job.target.precision.kv_cache == "int8" for job in jobs))
    for job in jobs:
        if job.system_prompt is not None:
            check_bake(job.system_prompt, job.target, job.context)


def open_source(model: str | Path | None, *, configuration_only: bool = False) -> Checkpoint:
    """Opens a model's checkpoint; None is the embedded nano model. See `open_checkpoint`."""
    if model is None:
        from qtool.nano import model_path

        checkpoint = replace(open_checkpoint(str(model_path())), name="nano", kind="embedded", id="nano")
    else:
        checkpoint = open_checkpoint(str(model), configuration_only=configuration_only)
    # Every artifact of a run needs these; the hashes take a pass over the whole source.
    return replace(
        checkpoint, sha256=cache(checkpoint.sha256), tokenizer_files=cache(checkpoint.tokenizer_files)
    )


def _target(item: str | Path | Target, kv_cache: str | None, exporter: str) -> Target:
    target = item if isinstance(item, Target) else qtool_targets.load(item)
    if kv_cache is not None:
        target = qtool_targets.with_kv_cache(target, kv_cache)
    if target.precision.kv_cache == "int8" and exporter != "native":
        raise TargetError(
            f"target {target.name}: an int8 KV cache needs an attention operator that the exporter"
            f" {exporter!r} does not write",
            hint="Use the native exporter, or leave the cache in floats.",
        )
    return target


def _calibration_text(
    targets: Sequence[Target], recipe: Recipe, path: str | Path | None
) -> CalibrationText | None:
    """Reads the text, if any target is calibrated."""
    if any(_is_calibrated(target, recipe) for target in targets):
        return read_calibration_text(path)
    if path is not None:
        raise QtoolError(
            f"the calibration text {path} would not be used: nothing is calibrated",
            hint="Add --recipe balanced (for a target of fewer than 8 bits) or --kv-cache int8, or leave the"
            " text away.",
        )
    return None


def _is_calibrated(target: Target, recipe: Recipe) -> bool:
    return recipe.calibrates(target) or target.precision.kv_cache == "int8"


def _system_prompt(path: str | Path | None, checkpoint: Checkpoint) -> SystemPrompt | None:
    if path is None:
        return None
    from qtool.bake import prepare  # a template engine, and the runtime

    return prepare(path, checkpoint)


def _context(checkpoint: Checkpoint, target: Target, asked: int | None) -> int:
    """Decides the context: what was asked for, else the target's default within the model's maximum."""
    most = checkpoint.config.max_position_embeddings
    if asked is None:
        return min(target.memory.context, most)
    if not 0 < asked <= most:
        raise TargetError(
            f"the context {asked} is not between 1 and {most}, the maximum of {checkpoint.name}",
            hint=f"Pass --context {most} or less.",
        )
    return asked


def _threads(asked: int | None) -> int:
    if asked is not None:
        return max(1, asked)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)
