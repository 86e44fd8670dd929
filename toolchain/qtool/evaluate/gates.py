"""What an artifact has to reach, and what to do where it does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NoReturn

import qtool_targets
from qtool.errors import GateError, UnsupportedModelError
from qtool.jobs import Job
from qtool.plan import make_plan
from qtool_runtime.manifest import Manifest, Quality
from qtool_targets import Gates, Target

_MOST_SUGGESTIONS = 2
_PLAN_FACTOR, _PLAN_BYTES = 1.05, 1_000_000
"""Planned sizes come closer than that to those of artifacts."""


def check_planned_size(job: Job) -> None:
    """Refuses a build whose artifact cannot be small enough, before any work.

    Raises:
        GateError: it is planned to be clearly larger than its gate.
    """
    most, planned = job.target.gates.max_size_mb, job.plan.artifact
    if most is not None and planned > _PLAN_FACTOR * most * 1e6 + _PLAN_BYTES:
        _refuse_size(job, f"the artifact is planned to have {planned / 1e6:,.4g} MB", most)


def check_size(job: Job, manifest: Manifest) -> None:
    """Holds an artifact to its size.

    Raises:
        GateError: it is larger.
    """
    most = job.target.gates.max_size_mb
    size = artifact_bytes(manifest)
    if most is None or size <= most * 1e6:
        return
    _refuse_size(job, f"the artifact has {size / 1e6:,.4g} MB", most)


def _refuse_size(job: Job, what: str, most: float) -> NoReturn:
    raise GateError(
        f"target {job.target.name}: {what}, the gate is {most:,.4g} MB",
        hint=_hint(_targets(job, lambda target, planned: planned <= most * 1e6), "is small enough"),
    )


def check_quality(job: Job, manifest: Manifest, measured: Mapping[str, Quality]) -> None:
    """Holds an artifact to its quality.

    Args:
        job: the artifact.
        manifest: its manifest.
        measured: what was measured of it and of others of the same run, by the names of their targets.

    Raises:
        GateError: it is less like its source than was asked for.
    """
    gates, quality = job.target.gates, measured[job.target.name]
    if not (missed := _missed(gates, quality)):
        return
    most = math.inf if gates.max_size_mb is None else gates.max_size_mb * 1e6
    larger = _targets(
        job,
        lambda target, planned: target.weights.bits > job.target.weights.bits and planned <= most,
    )
    passing = [
        f"{name} (KL {other.kl_mean:.4g}, top-1 {other.top1_agreement:.1%}, measured)"
        for name, other in measured.items()
        if not _missed(gates, other)
    ]
    wanted = "has more bits" + (" within the gate of size" if most < math.inf else "")
    raise GateError(
        f"target {job.target.name}, {artifact_bytes(manifest) / 1e6:,.1f} MB: {'; '.join(missed)} (measured"
        f" over {quality.tokens:,} tokens)",
        hint=_hint(passing or larger, wanted),
    )


def artifact_bytes(manifest: Manifest) -> int:
    """Returns the bytes of all files but the manifest."""
    return sum(entry.size for entry in manifest.files)


def _missed(gates: Gates, quality: Quality) -> list[str]:
    """Says which gates were missed, and by how much."""
    missed = []
    if gates.max_kl is not None and quality.kl_mean > gates.max_kl:
        missed.append(
            f"the mean KL divergence is {quality.kl_mean:.4g} (standard error"
            f" {quality.kl_standard_error:.1g}), the gate is {gates.max_kl:g}"
        )
    if gates.min_top1 is not None and quality.top1_agreement < gates.min_top1:
        missed.append(f"top-1 agreement is {quality.top1_agreement:.1%}, the gate is {gates.min_top1:.1%}")
    return missed


def _targets(job: Job, fits: Callable[[Target, int], bool]) -> list[str]:
    """Returns a few shipped targets for the same provider that fit, with their planned sizes.

    Those for the same processor come first, and of several with the same bits there is only one.
    """
    family = job.target.name.rpartition("-")[0]
    found: dict[int, tuple[bool, int, str]] = {}
    for name in qtool_targets.names():
        target = qtool_targets.load(name)
        if target.execution.provider != job.target.execution.provider or name == job.target.name:
            continue
        size, bits = _planned(job, target), target.weights.bits
        if size is not None and fits(target, size):
            text = f"{name} ({bits} bits, {size / 1e6:,.1f} MB planned)"
            candidate = (name.rpartition("-")[0] != family, size, text)
            found[bits] = min(candidate, found.get(bits, candidate))
    return [text for _, _, text in sorted(found.values())[:_MOST_SUGGESTIONS]]


def _planned(job: Job, target: Target) -> int | None:
    """Returns the planned size of the model for another target; None where that cannot be built."""
    checkpoint = job.checkpoint
    try:
        return make_plan(checkpoint.config, target, job.context, checkpoint.tokenizer_bytes, 1).artifact
    except UnsupportedModelError:
        return None


def _hint(targets: list[str], wanted: str) -> str:
    way = (
        f"Try the target {', or '.join(targets)}" if targets else f"No other target for its provider {wanted}"
    )
    return f"{way}; use other bits in a target file of your own, or change the gate. Nothing was written."
