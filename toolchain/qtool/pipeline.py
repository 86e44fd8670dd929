"""From a checkpoint to artifacts, stage by stage. The file to read first.

`build` runs the stages for one or several targets of one model: source, calibrate, export, passes, quantize,
package, evaluate. Export and passes only describe the graph; weights are read, quantized and written in one
streaming pass, each distinct form once. What has to be measured is apart from that: integers of calibrated
matrices are computed before, layer by layer, and wait in a temporary folder; the scales of an int8 KV cache
come after, and, where it is asked for, how close the artifact is to its source.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qtool.artifact.folder import check_destination, new_folder
from qtool.jobs import Evaluation, Job, plan_jobs, threads_or_all
from qtool.quantize.formats import multiplied_matrices
from qtool_runtime.manifest import Calibration, Manifest
from qtool_targets import Gates, Target

if TYPE_CHECKING:
    from qtool.artifact.package import Package
    from qtool.build_cache import BuildCache
    from qtool.quantize.formats import Formats
    from qtool.quantize.storage import Calibrated

Progress = Callable[[str, int, int], None]
"""(stage, done, total): bytes of weights, tokens of a text, or tasks. Some stages have no
total: it is 0."""


@dataclass(frozen=True)
class Artifact:
    """One artifact that was built."""

    path: Path
    manifest: Manifest
    from_cache: bool = False
    """It had been built before."""

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
    target_bpw: float | None = None,
    calibration: str | Path | None = None,
    bake_prompt: str | Path | None = None,
    gates: Gates | None = None,
    evaluation: Evaluation | None = None,
    force: bool = False,
    ignore_budget: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: BuildCache | None = None,
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
            (extra `cpu`); "best" also chooses bits and group size for each matrix by what it costs to round
            it, within the largest size that `gates` ask for, or within `target_bpw`; "olive" and
            "olive-mixed" let Olive quantize (extra `olive`).
        target_bpw: bits a weight that `best` may spend, scales included; without it and a largest size, a
            sixth more than the target's formats take.
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
        cache: where artifacts are taken from that were built before, and kept (`build_cache.default_cache`).

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
        target_bpw=target_bpw,
        calibration=calibration,
        bake_prompt=bake_prompt,
        gates=gates,
        evaluation=evaluation,
        threads=threads,
    )
    artifacts = run_jobs(
        jobs, force=force, ignore_budget=ignore_budget, threads=threads, progress=progress, cache=cache
    )
    return artifacts[0]


def run_jobs(
    jobs: Sequence[Job],
    *,
    force: bool = False,
    ignore_budget: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: BuildCache | None = None,
) -> list[Artifact]:
    """Builds planned artifacts of one model in one pass over its weights.

    With a cache, those that it holds come from there, and the others are kept in it.
    """
    _check(jobs, force=force, ignore_budget=ignore_budget)
    # onnx_ir and what needs it come in here, so that a plan and `--help` stay quick.
    from qtool.artifact.package import write_manifest
    from qtool.cache_key import job_key

    keys = [job_key(job) if cache else "" for job in jobs]
    with ExitStack() as stack:
        folders = [stack.enter_context(new_folder(job.output, force=force)) for job in jobs]
        known = [
            cache.fetch(key, folder) if cache else None for key, folder in zip(keys, folders, strict=True)
        ]
        missing = [index for index, manifest in enumerate(known) if manifest is None]
        built = _build(
            [jobs[index] for index in missing],
            [folders[index] for index in missing],
            threads_or_all(threads),
            progress or (lambda stage, done, total: None),
        )
        manifests = {index: manifest for index, manifest in enumerate(known) if manifest is not None}
        manifests |= dict(zip(missing, built, strict=True))
        for index, folder in enumerate(folders):
            write_manifest(folder, manifests[index])
            if cache and index in missing:
                cache.store(keys[index], folder)
    return [
        Artifact(job.output, manifests[index], from_cache=index not in missing)
        for index, job in enumerate(jobs)
    ]


def _build(jobs: Sequence[Job], folders: Sequence[Path], threads: int, report: Progress) -> list[Manifest]:
    """Writes everything but the manifests, which it returns."""
    if not jobs:
        return []
    from qtool.artifact.package import Package
    from qtool.evaluate.stage import QualityStage

    windows = [job.windows() for job in jobs]
    quality = QualityStage(jobs, threads=threads, progress=report)
    with ExitStack() as stack:
        known: dict[Hashable, Calibrated] = {}
        packages = []
        for job, tokens, folder in zip(jobs, windows, folders, strict=True):
            waiting = Path(stack.enter_context(TemporaryDirectory(prefix=".calibrated-", dir=folder)))
            quantized = _quantize_with_olive(job, tokens, waiting, threads, report)
            formats = _spend_bits(quantized, tokens, threads, report)
            alike = _calibrated_alike(job, formats, tokens)
            if alike not in known:
                known[alike] = _calibrate_weights(
                    quantized, formats, tokens, folder=waiting, threads=threads, report=report
                )
            packages.append((_describe_graph(quantized, formats, known[alike], report), folder))
        Package.write_weights(packages, threads, lambda done, total: report("quantize", done, total))
        manifests = []
        for job, tokens, (package, folder) in zip(jobs, windows, packages, strict=True):
            calibration = _calibrate_cache(job, tokens, package, folder, threads=threads, report=report)
            report("package", 0, 0)
            manifest = package.finish(folder, calibration)
            if job.budget is not None:
                manifest = replace(manifest, spent_bits=job.budget.spent(manifest.quantization))
            manifests.append(_bake_prompt(job, manifest, folder, threads, report))
        return quality.run(list(folders), manifests)


def _calibrated_alike(job: Job, formats: Formats, windows: NDArray[np.int64] | None) -> Hashable:
    """Returns what calibrated matrices depend on within a run: targets that agree in it share them."""
    if windows is None or job.calibration is None or not job.recipe.calibrates(formats):
        return None
    schemes = tuple(multiplied_matrices(job.checkpoint.config, formats))
    return job.calibration.sha256, windows.shape, schemes, job.target.precision.activations


def _quantize_with_olive(
    job: Job, windows: NDArray[np.int64] | None, folder: Path, threads: int, report: Progress
) -> Job:
    """Returns the job with a source that Olive has quantized, if the recipe says so."""
    if windows is None or not job.recipe.runs_olive(job.target):
        return job
    from qtool.olive.quantize import quantize_with_olive
    from qtool.quantize.formats import formats_for

    report("olive", 0, 0)
    checkpoint = quantize_with_olive(
        job.checkpoint, job.target, windows, job.recipe.olive_passes, folder=folder, threads=threads
    )
    formats = formats_for(checkpoint.config, job.target, checkpoint.quantization)
    return replace(job, checkpoint=checkpoint, formats=formats)


def _spend_bits(job: Job, windows: NDArray[np.int64] | None, threads: int, report: Progress) -> Formats:
    """Decides how each matrix is stored: as planned, or where there is a budget, by what was measured."""
    if windows is None or job.budget is None or not job.budget.is_scarce:
        return job.formats
    from qtool.calibration.sensitivity import measure_losses

    losses = measure_losses(
        job.checkpoint,
        job.budget.choices.schemes,
        windows,
        threads=threads,
        progress=lambda done, total: report("measure", done, total),
    )
    return job.budget.choices.spend(job.budget.nbytes, losses)


def _calibrate_weights(
    job: Job,
    formats: Formats,
    windows: NDArray[np.int64] | None,
    *,
    folder: Path,
    threads: int,
    report: Progress,
) -> Calibrated:
    """Computes the integers of calibrated matrices, if the recipe has any, into a temporary folder."""
    if windows is None or not job.recipe.calibrates(formats):
        return {}
    from qtool.calibration.layers import quantize_layers

    report("calibrate", 0, job.plan.calibrated)
    return quantize_layers(
        job.checkpoint,
        job.target,
        formats,
        windows,
        folder=folder,
        threads=threads,
        progress=lambda done, total: report("calibrate", done, total),
    )


def _describe_graph(job: Job, formats: Formats, integers: Calibrated, report: Progress) -> Package:
    """Exports the graph and rewrites it for the target; weights are only referred to."""
    from qtool.artifact.package import Package
    from qtool.exporters import export
    from qtool.passes import passes_for

    report("export", 0, 0)
    graph = export(job.checkpoint, job.target, job.context, job.exporter)
    for rewrite in passes_for(job.target, formats, integers):
        rewrite(graph)
    return Package(job.checkpoint, job.target, formats, job.context, job.exporter, model=graph)


def _calibrate_cache(
    job: Job,
    windows: NDArray[np.int64] | None,
    package: Package,
    folder: Path,
    *,
    threads: int,
    report: Progress,
) -> Calibration | None:
    """Measures the scales of an int8 KV cache; returns what was calibrated on, if anything was."""
    if job.calibration is None or windows is None:
        return None
    if job.target.precision.kv_cache == "int8":
        report("calibrate", 0, 0)
        package.calibrate_kv_cache(folder, windows, threads)
    return Calibration(job.calibration.sha256, windows.size)


def _bake_prompt(job: Job, manifest: Manifest, folder: Path, threads: int, report: Progress) -> Manifest:
    """Reads the system prompt with the compiled graph, if there is one."""
    if job.system_prompt is None:
        return manifest
    from qtool.bake import bake

    report("bake", 0, 0)
    return bake(folder, manifest, job.system_prompt, threads)


def _check(jobs: Sequence[Job], *, force: bool, ignore_budget: bool) -> None:
    """Refuses what cannot be built, before any work."""
    for job in jobs:
        check_destination(job.output, force)
        if not ignore_budget:
            job.plan.check_budget()
    from qtool.bake import check_bake
    from qtool.calibration.kv_cache import check_onnxruntime
    from qtool.evaluate.gates import check_planned_size
    from qtool.olive.settings import check_installed
    from qtool.passes import capabilities_for

    for job in jobs:
        capabilities_for(job.target)
        check_planned_size(job)
        if job.recipe.runs_olive(job.target):
            check_installed()
        if job.recipe.calibrates(job.formats):  # minutes of work that a graph without kernels is not worth
            _describe_graph(job, job.formats, {}, lambda stage, done, total: None)
    if any(job.calibration for job in jobs):
        check_onnxruntime(int8_kv_cache=any(job.target.precision.kv_cache == "int8" for job in jobs))
    for job in jobs:
        if job.system_prompt is not None:
            check_bake(job.system_prompt, job.target, job.context)
