"""What is to be built: the source, the target and all choices, checked and planned before any work."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import qtool_targets
from qtool.calibration.mix import CalibrationWarning, doubts
from qtool.calibration.text import (
    FEWEST_TOKENS,
    FEWEST_TOKENS_FOR_WEIGHTS,
    CalibrationText,
    read_calibration_text,
)
from qtool.checkpoint import Checkpoint, open_checkpoint
from qtool.checkpoint.quantization import Quantization
from qtool.errors import OptionError
from qtool.olive.settings import planned_quantization
from qtool.plain_text import PlainText
from qtool.plan import Plan, make_plan
from qtool.quantize.formats import Formats, formats_for
from qtool.quantize.recipes import FAST, Recipe, recipe_called, recipes_for
from qtool_targets import Gates, Target, TargetError

if TYPE_CHECKING:
    from qtool.bake import SystemPrompt
    from qtool.spending import BitBudget

EXPORTERS = ("native", "optimum")


@dataclass(frozen=True)
class Evaluation:
    """How artifacts are compared with their source during a build."""

    text: PlainText | None = None
    """What both read; None for the text that ships with qtool."""
    tokens: int | None = None
    """Predictions to compare; None for the usual number."""


@dataclass(frozen=True)
class Limits:
    """What was asked for, for this build: if nothing was, the recipe says how much may be spent."""

    bits_per_weight: float | None
    has_size: bool
    """A largest size was given. The size itself is the target's gate."""


@dataclass(frozen=True)
class Job:
    """One artifact to be built."""

    checkpoint: Checkpoint
    target: Target
    context: int
    exporter: str
    output: Path
    plan: Plan
    formats: Formats
    """How each matrix is stored. With a budget, what is to be expected until sensitivities are measured."""
    recipe: Recipe = FAST
    """The one that was asked for; `FAST` where that changes nothing for the target."""
    budget: BitBudget | None = None
    """What matrices may take, where that is to be spent where it counts."""
    calibration: CalibrationText | None = None
    """What to measure on; None where nothing is."""
    system_prompt: SystemPrompt | None = None
    """What is baked in, so that conversations with it start sooner."""
    evaluation: Evaluation | None = None
    """How to compare it with its source; None where that is not done."""

    def windows(self) -> NDArray[np.int64] | None:
        """Cuts the calibration text into token ids of shape (windows, tokens).

        Warns (`CalibrationWarning`) where the text is probably not what the model will read.
        """
        if self.calibration is None:
            return None
        weights = self.recipe.calibrates(self.formats) or self.recipe.runs_olive(self.target)
        fewest = FEWEST_TOKENS_FOR_WEIGHTS if weights else FEWEST_TOKENS
        tokenizer = self.checkpoint.tokenizer_files()["tokenizer.json"]
        windows = self.calibration.windows(tokenizer, self.context, fewest)
        for doubt in doubts(self.calibration, tokenizer):
            warnings.warn(doubt, CalibrationWarning, stacklevel=2)
        return windows


def plan_jobs(
    model: str | Path | None,
    targets: Sequence[str | Path | Target],
    *,
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
    threads: int | None = None,
    plan_only: bool = False,
) -> list[Job]:
    """Opens the source and plans an artifact for each target; reads no tensor.

    With several targets, `output` is the parent of the folders NAME-TARGET, and those for which the recipe
    changes nothing are built by the recipe `fast`, without a budget of bits. With `plan_only`, weights
    are neither downloaded nor looked for: a folder with a config.json will do. Such jobs cannot be run.
    """
    if exporter not in EXPORTERS:
        raise OptionError(f"unknown exporter {exporter!r}; known: {', '.join(EXPORTERS)}")
    chosen = recipe_called(recipe)
    if target_bpw is not None and chosen.room is None:
        raise OptionError(
            f"{target_bpw:g} bits a weight would not be used: the recipe {recipe!r} stores matrices as the"
            " target says",
            hint="Add --recipe best, which chooses bits and group size for each matrix.",
        )
    loaded = [
        qtool_targets.with_gates(_target(item, kv_cache, exporter), gates or Gates()) for item in targets
    ]
    recipes = recipes_for(chosen, loaded)
    text = _calibration_text(loaded, recipes, calibration)
    checkpoint = open_source(model, configuration_only=plan_only)
    _check_recipe(chosen, checkpoint, len(targets))
    common = _Common(
        checkpoint=checkpoint,
        exporter=exporter,
        limits=Limits(target_bpw, gates is not None and gates.max_size_mb is not None),
        text=text,
        system_prompt=_system_prompt(bake_prompt, checkpoint),
        evaluation=evaluation,
        threads=threads_or_all(threads),
    )
    jobs = []
    for target, each in zip(loaded, recipes, strict=True):
        folder = Path(f"{checkpoint.name}-{target.name}")
        if output is not None:
            folder = Path(output) / folder if len(targets) > 1 else Path(output)
        jobs.append(common.job(target, each, _context(checkpoint, target, context), folder))
    return jobs


@dataclass(frozen=True)
class _Common:
    """What was decided for all targets of a run."""

    checkpoint: Checkpoint
    exporter: str
    limits: Limits
    text: CalibrationText | None
    system_prompt: SystemPrompt | None
    evaluation: Evaluation | None
    threads: int

    def job(self, target: Target, recipe: Recipe, context: int, output: Path) -> Job:
        """Plans the artifact for one target."""
        plan_with = partial(
            make_plan,
            self.checkpoint.config,
            target,
            context,
            self.checkpoint.tokenizer_bytes,
            self.threads,
            recipe=recipe,
            exporter=self.exporter,
            system_prompt=self.system_prompt,
        )
        formats, plan, budget = _formats(self.checkpoint, target, recipe, plan_with, self.limits)
        scarce = budget is not None and budget.is_scarce
        calibrates = recipe.calibrates(formats) or recipe.runs_olive(target)
        measures = scarce or calibrates or target.precision.kv_cache == "int8"
        return Job(
            checkpoint=self.checkpoint,
            target=target,
            context=context,
            exporter=self.exporter,
            output=output,
            plan=plan,
            formats=formats,
            recipe=recipe,
            budget=budget,
            calibration=self.text if measures else None,
            system_prompt=self.system_prompt,
            evaluation=self.evaluation or (Evaluation() if target.gates.ask_for_quality else None),
        )


def _formats(
    checkpoint: Checkpoint,
    target: Target,
    recipe: Recipe,
    plan_with: Callable[..., Plan],
    limits: Limits,
) -> tuple[Formats, Plan, BitBudget | None]:
    """Decides how matrices are stored: as the target says, or within a budget, which takes a plan to know."""
    formats = formats_for(checkpoint.config, target, _quantization(checkpoint, target, recipe))
    plan = plan_with(formats=formats)
    if recipe.room is None:
        return formats, plan, None
    from qtool.spending import bit_budget  # what providers can run comes with onnx_ir

    room = None if limits.bits_per_weight or limits.has_size else recipe.room
    budget = bit_budget(
        checkpoint.config, target, room, formats=formats, plan=plan, bits_per_weight=limits.bits_per_weight
    )
    if budget is not None:
        formats = budget.choices.spend(budget.nbytes)
        plan = plan_with(formats=formats)
    return formats, plan, budget


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


def _check_recipe(recipe: Recipe, checkpoint: Checkpoint, targets: int) -> None:
    """Refuses to quantize again what is quantized already, and to run Olive for many targets unasked."""
    if checkpoint.quantization is not None and recipe != FAST:
        raise OptionError(
            f"the recipe {recipe.name} is for weights in floats; those of {checkpoint.name} are quantized"
            f" already ({checkpoint.quantization.method}), and are taken over as they are",
            hint="Leave --recipe out, or give the original model.",
        )
    if recipe.olive_passes and targets > 1:
        raise OptionError(
            f"the recipe {recipe.name} builds for one target at a time, not for {targets}",
            hint="Olive would quantize the model anew for each; name one target.",
        )


def _quantization(checkpoint: Checkpoint, target: Target, recipe: Recipe) -> Quantization | None:
    """Returns how matrices are, or will be, quantized by somebody else."""
    if recipe.runs_olive(target):
        return planned_quantization(checkpoint.config, target, recipe.olive_passes)
    if checkpoint.quantization is None:
        return None
    from qtool.passes.capabilities import capabilities_for  # comes with onnx_ir

    if capabilities_for(target).supports_implied_zero_points:
        return checkpoint.quantization
    return checkpoint.quantization.with_zero_points()


def _calibration_text(
    targets: Sequence[Target], recipes: Sequence[Recipe], path: str | Path | None
) -> CalibrationText | None:
    """Reads the text, if any target is calibrated."""
    if any(
        recipe.changes(target) or target.precision.kv_cache == "int8"
        for target, recipe in zip(targets, recipes, strict=True)
    ):
        return read_calibration_text(path)
    if path is not None:
        raise OptionError(
            f"the calibration text {path} would not be used: nothing is calibrated",
            hint="Add --recipe balanced (for a target of fewer than 8 bits), --recipe best or --kv-cache"
            " int8, or leave the text out.",
        )
    return None


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


def threads_or_all(asked: int | None) -> int:
    """Returns the threads that were asked for, or as many as this process has processors."""
    if asked is not None:
        return max(1, asked)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)
