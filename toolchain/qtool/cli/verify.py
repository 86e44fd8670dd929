"""`qtool verify`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qtool.cli.output import json_option, print_json
from qtool.emulate.processors import PROCESSORS
from qtool.errors import EmulationError
from qtool_runtime.errors import ArtifactError

if TYPE_CHECKING:
    from qtool.artifact.verify import Report

_OF_EMULATION = ("processors", "prompt", "tokens", "threads", "timeout")


@click.command(name="verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--emulate",
    type=click.Choice(["arm64"]),
    help="Also run it on emulated 64-bit Arm processors, and compare with this one.",
)
@click.option(
    "--processor",
    "processors",
    type=click.Choice(list(PROCESSORS)),
    multiple=True,
    help="Emulate this one; may be given several times. [default: all]",
)
@click.option(
    "--prompt", default="Turn on the kitchen light", show_default=True, help="What to ask when emulating."
)
@click.option(
    "-n",
    "--tokens",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="How many to generate when emulating.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads when emulating.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="For each emulated processor.",
)
@json_option
@click.pass_context
def command(
    context: click.Context, /, artifact: Path, emulate: str | None, as_json: bool, **options: Any
) -> None:
    """Check ARTIFACT: every file's hash, completeness, operators and required onnxruntime.

    With --emulate arm64, the artifact also answers a prompt: on this processor, and with onnxruntime for
    64-bit Arm on emulated ones (Linux only; needs qemu). All have to generate the same tokens with about the
    same probabilities. The time that it takes says nothing about real processors.
    """
    if emulate is None:
        _refuse_unused(context)
    from qtool.artifact.verify import verify

    report = verify(artifact)
    details: dict[str, Any] = {}
    if emulate and not report.problems:
        report, details = _emulate(report, artifact, options)
    if as_json:
        print_json(report.to_dict() | details)
    else:
        for check in report.checks:
            click.echo(f"{check.status:<7}  {check.name}: {check.detail}")
    if not report.problems:
        return
    message = f"{artifact} failed {len(report.problems)} of {len(report.checks)} checks: " + "; ".join(
        check.detail for check in report.problems
    )
    if details:
        raise EmulationError(message, hint="The artifact is whole: does another onnxruntime run it there?")
    raise ArtifactError(message, hint="Build or copy the artifact again.")


def _refuse_unused(context: click.Context) -> None:
    for name in _OF_EMULATION:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = next(each for each in context.command.params if each.name == name)
            raise click.UsageError(f"{option.opts[-1]} goes with --emulate arm64.", context)


def _emulate(report: Report, artifact: Path, options: dict[str, Any]) -> tuple[Report, dict[str, Any]]:
    """Adds the checks of emulated processors to a report, and gives their figures."""
    from qtool.emulate.verify import emulate

    processors = list(dict.fromkeys(options.pop("processors") or PROCESSORS))
    found = emulate(artifact, processors, note=lambda text: click.echo(text, err=True), **options)
    checks = (*report.checks, *(each.check for each in found))
    return replace(report, checks=checks), {"emulations": [each.to_dict() for each in found]}
