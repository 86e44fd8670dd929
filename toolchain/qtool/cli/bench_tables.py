"""What `qtool bench` prints for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from qtool.bench.measures import BYTES, Measure, Spread
from qtool.bench.report import Report
from qtool.cli.output import megabytes, print_table

JSON_ONLY = ("import_seconds", "load_seconds", "anonymous")
"""Keys of figures that people need not see."""


def print_report(report: Report) -> None:
    """Prints a table of all engines, one of ratios, and what limits decoding."""
    measures = [measure for measure in report.measures if not set(JSON_ONLY) & set(measure.path)]
    threads, rounds = _count(report.threads, "thread"), _count(len(report.ours.rounds), "round")
    click.echo(
        f"{report.manifest.name} {report.manifest.target.get('name')} on {report.provider},"
        f" kernels of {report.kernels}, {threads};"
        f" medians (lowest to highest) of {rounds}\n"
    )
    engines = [report.ours, *report.peers]
    names = [f"{each.engine} {each.version or ''}".strip() for each in engines]
    _print_spreads("", names, measures, lambda measure: [measure.spread(each) for each in engines], figures)
    if report.peers:
        click.echo()
        names = [f"/ {peer.engine}" for peer in report.peers]
        _print_spreads(
            "qtool",
            names,
            [measure for measure in measures if "time_to_first_token_seconds" not in measure.path],
            lambda measure: [measure.ratio(report.ours, peer) for peer in report.peers],
            ratios,
        )
    click.echo()
    _print_limit(report)
    for reason in report.skipped.values():
        click.echo(f"skipped: {reason}")


def _print_spreads(
    title: str,
    names: Sequence[str],
    measures: Sequence[Measure],
    spreads: Callable[[Measure], Sequence[Spread | None]],
    form: Callable[[Spread, str], str],
) -> None:
    """Prints a row for each measure that has a figure."""
    rows = []
    for measure in measures:
        found = spreads(measure)
        if any(found):
            unit = "MB" if measure.unit == BYTES else measure.unit
            label = f"{measure.label}, {unit}" if form is figures else measure.label
            rows.append((label, *(form(spread, measure.unit) if spread else "-" for spread in found)))
    print_table((title, *names), rows)


def figures(spread: Spread, unit: str) -> str:
    """Returns a figure for people, such as "31.2 (30.4 to 31.3)"."""
    scale = 1e-6 if unit == BYTES else 1.0
    low, median, high = (_digits(value * scale) for value in (spread.low, spread.median, spread.high))
    return median if low == high else f"{median} ({low} to {high})"


def ratios(spread: Spread, unit: str) -> str:
    """Returns a ratio for people."""
    low, median, high = (f"{value:.2f}" for value in (spread.low, spread.median, spread.high))
    return median if low == high else f"{median} ({low} to {high})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _digits(value: float) -> str:
    """Returns a number with three significant digits, or more of them before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _print_limit(report: Report) -> None:
    """Says how much of the memory's read bandwidth decoding used."""
    weights = megabytes(report.weight_bytes_per_token)
    if report.read_bandwidth is not None and report.bandwidth_fraction is not None:
        click.echo(
            f"a token reads {weights} of weights; at best that took {report.bandwidth_fraction:.0%} of the"
            f" read bandwidth, {report.read_bandwidth.high / 1e9:.1f} GB/s"
        )
    if report.load_average is not None:
        before, after = report.load_average
        click.echo(f"load average before and after: {before:.1f}, {after:.1f}")
