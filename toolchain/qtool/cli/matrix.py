"""`qtool matrix`."""

from __future__ import annotations

import click


@click.command(name="matrix")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--target",
    "-t",
    "targets",
    multiple=True,
    metavar="NAME|PATH|all",
    help="Hardware profile; may be given several times.  [default: all]",
)
@click.option(
    "--format",
    "system",
    type=click.Choice(["github", "gitlab"]),
    default="github",
    show_default=True,
    help="github: the value of `strategy.matrix`, one line of JSON. gitlab: a pipeline for `trigger`.",
)
def command(*, models: tuple[str, ...], targets: tuple[str, ...], system: str) -> None:
    """Print a job for each MODEL and target, for a CI system to build."""
    from qtool.matrix import matrix_jobs, matrix_text

    click.echo(matrix_text(matrix_jobs(models, targets or ("all",)), system))
