"""`qtool health`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qtool.cli.load_options import load_options
from qtool.cli.output import json_option, print_json, print_table
from qtool.errors import UnhealthyError


@click.command(name="health")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--max-time-to-first-token",
    type=float,
    metavar="SECONDS",
    help="Most time for the first token of a short prompt.",
)
@click.option("--min-decode-rate", type=float, metavar="RATE", help="Least tokens per second.")
@click.option(
    "--max-resident-bytes", type=float, metavar="BYTES", help="Most memory that the whole process takes."
)
@load_options
@json_option
def command(
    *,
    artifact: Path,
    max_time_to_first_token: float | None,
    min_decode_rate: float | None,
    max_resident_bytes: float | None,
    loading: dict[str, Any],
    as_json: bool,
) -> None:
    """Load ARTIFACT, generate a few tokens twice, and judge what comes.

    Without thresholds, only a broken artifact or installation fails, however slow the machine is.
    """
    import qtool_runtime

    with qtool_runtime.load(artifact, **loading) as model:
        report = model.health(
            max_time_to_first_token=max_time_to_first_token,
            min_decode_rate=min_decode_rate,
            max_resident_bytes=max_resident_bytes,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        rows = [
            [
                "ok" if check.ok else "FAILED",
                check.name,
                _number(check.value),
                f"{check.rule} {_number(check.threshold)}" if check.threshold is not None else "",
            ]
            for check in report.checks
        ]
        print_table(["", "check", "value", "threshold"], rows)
    if not report.ok:
        failed = ", ".join(f"{check.name} is {_number(check.value)}" for check in report.failures)
        raise UnhealthyError(
            f"{artifact} is not healthy: {report.error or failed}",
            hint="Check its files with `qtool verify`; thresholds depend on the machine.",
        )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
