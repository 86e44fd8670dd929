"""`qtool verify`."""

from __future__ import annotations

from pathlib import Path

import click

from qtool.cli.output import json_option, print_json
from qtool_runtime.errors import ArtifactError


@click.command(name="verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@json_option
def command(artifact: Path, as_json: bool) -> None:
    """Check ARTIFACT: every file's hash, completeness, operators and required onnxruntime."""
    from qtool.artifact.verify import verify

    report = verify(artifact)
    if as_json:
        print_json(report.to_dict())
    else:
        for check in report.checks:
            click.echo(f"{check.status:<7}  {check.name}: {check.detail}")
    if report.problems:
        raise ArtifactError(
            f"{artifact} failed {len(report.problems)} of {len(report.checks)} checks: "
            + "; ".join(check.detail for check in report.problems),
            hint="Build or copy the artifact again.",
        )
