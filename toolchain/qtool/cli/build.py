"""`qtool build`."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

import qtool_targets
from qtool.cli.output import (
    json_option,
    megabytes,
    phone_facts,
    print_facts,
    print_json,
    print_table,
    quality_line,
)
from qtool.cli.quality_options import QualityOptions, quality_options

if TYPE_CHECKING:
    from qtool.jobs import Job
    from qtool.pipeline import Artifact
    from qtool.plan import Plan


@click.command(name="build")
@click.argument("model", required=False)
@click.option(
    "--target", "-t", required=True, metavar="NAME|PATH|all", help="Hardware profile; see `qtool targets`."
)
@click.option(
    "--output",
    "-o",
    type=click.Path(),
    help="Folder to write (with `all`, its parent). [default: ./NAME-TARGET]",
)
@click.option(
    "--context", type=click.IntRange(min=1), help="Tokens to plan for, instead of the target's default."
)
@click.option(
    "--exporter",
    type=click.Choice(["native", "optimum"]),
    default="native",
    show_default=True,
    help="What writes the graph.",
)
@click.option(
    "--kv-cache",
    type=click.Choice(["float32", "float16", "int8"]),
    help="Type of cached keys and values, instead of the target's.",
)
@click.option(
    "--recipe",
    type=click.Choice(["fast", "balanced", "best", "olive", "olive-mixed"]),
    default="fast",
    show_default=True,
    help="fast rounds weights to nearest; balanced calibrates 4-bit ones on a text; best also chooses bits"
    " and group size for each matrix, within --max-size or --target-bpw; olive and olive-mixed let Olive"
    " calibrate.",
)
@click.option(
    "--target-bpw",
    type=click.FloatRange(min=0, min_open=True),
    metavar="BITS",
    help="Bits a weight that the recipe best may spend, scales included. [default: a sixth more than the"
    " target's formats take]",
)
@click.option(
    "--calibration",
    type=click.Path(),
    metavar="FILE",
    help="Text to calibrate on, instead of qtool's own; its first 16,384 tokens are read.",
)
@click.option(
    "--bake-prompt",
    type=click.Path(),
    metavar="FILE",
    help="System prompt, a UTF-8 text, to read now, so that conversations with it start sooner.",
)
@click.option("--plan", "plan_only", is_flag=True, help="Only print predicted sizes and memory.")
@click.option("--force", is_flag=True, help="Replace an artifact that is there.")
@click.option("--ignore-budget", is_flag=True, help="Build even if the device's memory budget is exceeded.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of the build; the result does not depend on it."
)
@click.option(
    "--cache/--no-cache",
    envvar="QTOOL_CACHE",
    show_envvar=True,
    help="Take artifacts from the cache that were built before, and keep others there; see `qtool cache`."
    " [default: no-cache]",
)
@quality_options
@json_option
def command(
    *,
    model: str | None,
    target: str,
    output: str | None,
    context: int | None,
    exporter: str,
    kv_cache: str | None,
    recipe: str,
    target_bpw: float | None,
    calibration: str | None,
    bake_prompt: str | None,
    plan_only: bool,
    force: bool,
    ignore_budget: bool,
    threads: int | None,
    cache: bool,
    quality: QualityOptions,
    as_json: bool,
) -> None:
    """Compile MODEL into an artifact for one target.

    MODEL is a Hugging Face id, a folder of safetensors, or a GGUF file. Without it, the small model that
    ships with qtool is compiled.
    """
    from qtool.build_cache import default_cache
    from qtool.cli.progress import progress
    from qtool.jobs import plan_jobs
    from qtool.pipeline import run_jobs

    started = time.perf_counter()
    kept = default_cache(lambda message: click.echo(message, err=True)) if cache else None
    targets = qtool_targets.names() if target == "all" else [target]
    jobs = plan_jobs(
        model,
        targets,
        output=output,
        context=context,
        exporter=exporter,
        kv_cache=kv_cache,
        recipe=recipe,
        target_bpw=target_bpw,
        calibration=calibration,
        bake_prompt=bake_prompt,
        gates=quality.gates,
        evaluation=quality.evaluation(),
        threads=threads,
        plan_only=plan_only,
    )
    if left_out := [job.target.name for job in jobs if job.recipe.name != recipe]:
        click.echo(f"{recipe} changes nothing for {', '.join(left_out)}: as with the recipe fast", err=True)
    if plan_only:
        _print_plans(jobs, as_json)
        return
    with progress() as report:
        artifacts = run_jobs(
            jobs,
            force=force,
            ignore_budget=ignore_budget,
            threads=threads,
            progress=report,
            cache=kept,
        )
    _print_artifacts(jobs, artifacts, time.perf_counter() - started, as_json)


def _print_plans(jobs: list[Job], as_json: bool) -> None:
    if as_json:
        documents = [job.plan.to_dict() for job in jobs]
        print_json(documents if len(documents) > 1 else documents[0])
    elif len(jobs) == 1:
        _print_plan(jobs[0])
    else:
        header = ("target", "context", "artifact", "KV a token", "device peak", "budget", "fits")
        print_table(header, [_plan_row(job.plan) for job in jobs])


def _print_plan(job: Job) -> None:
    plan = job.plan
    device = plan.device
    baked = []
    if job.system_prompt is not None:
        size = megabytes(job.system_prompt.bytes(job.checkpoint.config, job.target))
        baked.append(("system prompt", f"{plan.system_prompt:,} tokens baked in, {size}"))
    print_facts(
        [
            ("model", job.checkpoint.name),
            ("target", plan.target),
            ("context", f"{plan.context:,} tokens"),
            *baked,
            ("artifact", megabytes(plan.artifact) + _size_gate(job)),
            ("disk for the build", megabytes(plan.disk)),
            ("build memory", megabytes(plan.build_memory)),
            ("KV cache", f"{plan.kv_bytes_per_token:,} bytes a token, {megabytes(device.kv_cache)} in all"),
            ("device weights", f"{megabytes(device.weights)} at the load's peak"),
            ("prefix memory", megabytes(device.prefix_memory)),
            ("device activations", megabytes(device.activations)),
            ("device runtime", megabytes(device.runtime)),
            ("device peak", f"{megabytes(device.peak)} of a budget of {megabytes(device.budget)}"),
            ("fits", "yes" if plan.fits else "no"),
            *phone_facts(plan.phones),
        ]
    )


def _size_gate(job: Job) -> str:
    most = job.target.gates.max_size_mb
    if most is None:
        return ""
    return f" of at most {most:,g} MB" + (", too large" if job.plan.artifact > most * 1e6 else "")


def _plan_row(plan: Plan) -> tuple[str, ...]:
    return (
        plan.target,
        f"{plan.context:,}",
        megabytes(plan.artifact),
        f"{plan.kv_bytes_per_token:,} B",
        megabytes(plan.device.peak),
        megabytes(plan.device.budget),
        "yes" if plan.fits else "no",
    )


def _print_artifacts(jobs: list[Job], artifacts: list[Artifact], seconds: float, as_json: bool) -> None:
    if as_json:
        documents = [
            {
                "path": str(artifact.path),
                "size": artifact.size,
                "seconds": round(seconds, 3),
                "from_cache": artifact.from_cache,
                "target": job.target.name,
                "context": artifact.manifest.context,
                "recipe": job.recipe.name,
                "memory": asdict(artifact.manifest.memory),
                "planned_size": job.plan.artifact,
                "quality": None if artifact.manifest.quality is None else asdict(artifact.manifest.quality),
            }
            for job, artifact in zip(jobs, artifacts, strict=True)
        ]
        print_json(documents if len(documents) > 1 else documents[0])
        return
    for artifact in artifacts:
        peak = artifact.manifest.memory.peak
        click.echo(
            f"{artifact.path}  {megabytes(artifact.size)}, planned peak on the device {megabytes(peak)}"
            f"{', from the cache' if artifact.from_cache else ''}"
        )
        if artifact.manifest.quality is not None:
            click.echo(f"{artifact.path}  {quality_line(artifact.manifest.quality)}")
    click.echo(f"built in {seconds:.1f} s; run it: {_how_to_run(artifacts[0])}", err=True)


def _how_to_run(artifact: Artifact) -> str:
    if artifact.manifest.graph.provider == "webgpu":  # no package of onnxruntime for Python has it
        return f"qtool package {artifact.path} --web page --fetch"
    return f"qtool run {artifact.path} 'your prompt'"
