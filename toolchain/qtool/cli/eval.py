"""`qtool eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtool.cli.load_options import kernels_option
from qtool.cli.output import json_option, megabytes, print_json, print_table

if TYPE_CHECKING:
    from qtool.evaluate.report import Report
    from qtool.nano.accuracy import Score


@click.command(name="eval")
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="SOURCE",
    help="What the artifacts were built from: anything that `qtool build` takes, or an artifact in float32."
    " [default: the model that ships with qtool]",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Plain text to compare on, in UTF-8. [default: one that ships with qtool]",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=64),
    metavar="TOKENS",
    help="Predictions to compare. [default: 4096, or fewer where the text is shorter]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Processor threads. [default: those this process may use]",
)
@click.option("--provider", help="Run on this provider instead of the artifacts', such as cpu.")
@kernels_option
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write a report with plots: one file, to be opened in a browser.",
)
@json_option
def command(
    *,
    artifacts: tuple[Path, ...],
    against: str | None,
    text: Path | None,
    tokens: int | None,
    threads: int | None,
    provider: str | None,
    kernels: str,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure how close each ARTIFACT is to the model it was built from.

    Both read the same text. Compared are the probabilities of every next token: their KL divergence (0 where
    they are the same), how often both find the same token the most probable, and the perplexity of the text.
    """
    from qtool.cli.progress import progress
    from qtool.evaluate.evaluation import evaluate
    from qtool.evaluate.page import check_page, write_page

    if html is not None:
        check_page(html)
    with progress() as report:
        found = evaluate(
            artifacts,
            against,
            text=text,
            tokens=tokens,
            threads=threads,
            provider=provider,
            kernels=kernels,
            progress=report,
        )
    if html is not None:
        write_page(found, html)
    if as_json:
        print_json(found.to_dict())
    else:
        _print_report(found)


def _print_report(report: Report) -> None:
    click.echo(
        f"against {report.reference} in float32, {report.tokens:,} tokens of {report.text} in windows of"
        f" {report.window}\n"
    )
    rows = [
        (
            artifact.name,
            megabytes(artifact.size),
            f"{artifact.kl.mean:.4g}",
            f"{artifact.kl.standard_error:.1g}",
            f"{artifact.kl.median:.4g}",
            f"{artifact.kl.p99:.3g}",
            f"{artifact.top1_agreement:.1%}",
            f"{artifact.perplexity:.2f}",
            _share(artifact.accuracy),
        )
        for artifact in report.artifacts
    ]
    source = ("the source", "", "0", "", "0", "0", "100.0%", f"{report.reference_perplexity:.2f}")
    rows.append((*source, _share(report.reference_accuracy)))
    header = ("artifact", "size", "KL mean", "s.e.", "median", "p99", "top-1", "perplexity", "tasks solved")
    shown = len(header) if report.reference_accuracy else len(header) - 1
    print_table(header[:shown], [row[:shown] for row in rows])
    if report.peak_memory is not None:
        click.echo(f"\npeak memory {megabytes(report.peak_memory)}, with all models loaded", err=True)


def _share(score: Score | None) -> str:
    return f"{score.right} of {score.total}" if score else ""
