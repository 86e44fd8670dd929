"""Plain, aligned text for people; JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click

from qtool.phones import APP_SHARE, PhonePlan
from qtool_runtime.manifest import Quality

json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")


def print_json(document: Any) -> None:
    """Prints a document as indented JSON with sorted keys."""
    click.echo(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False))


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Prints "name  value" lines with the values, and further lines of a value, in one column."""
    rows = list(facts)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  " + value.replace("\n", "\n" + " " * (width + 2)))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows under a header, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def megabytes(size: int) -> str:
    """Returns a size in units of 10^6 bytes, with one decimal below 100."""
    return f"{size / 1e6:,.1f} MB" if size < 100e6 else f"{size / 1e6:,.0f} MB"


def phone_facts(plans: Sequence[PhonePlan]) -> list[tuple[str, str]]:
    """Returns what context fits each phone, for `print_facts`."""
    if not plans:
        return []
    fits = [
        f"{plan.phone_gb} GB: " + (f"{plan.context:,} tokens" if plan.context else "too large")
        for plan in plans
    ]
    return [("phones", f"{'; '.join(fits)}; with {APP_SHARE:.0%} of the memory for the app")]


def quality_line(quality: Quality) -> str:
    """Returns the figures that an artifact's manifest has of its quality."""
    return (
        f"KL {quality.kl_mean:.4g} ± {quality.kl_standard_error:.1g}, top-1 {quality.top1_agreement:.1%},"
        f" perplexity {quality.perplexity:.2f} (source {quality.source_perplexity:.2f}),"
        f" {quality.tokens:,} tokens on {quality.provider}"
    )
