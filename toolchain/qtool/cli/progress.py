"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from qtool.calibration.mix import CalibrationWarning
from qtool.pipeline import Progress

_PLAIN_STEP = 0.25
"""Without a terminal a line is printed every time this fraction more is done."""


@contextmanager
def progress() -> Iterator[Progress]:
    """Gives a function that shows a build's progress; doubts about a text are lines of their own."""
    with _shown_doubts():
        if sys.stderr.isatty():
            with _bar() as report:
                yield report
        else:
            yield _lines()


@contextmanager
def _shown_doubts() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default", CalibrationWarning)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **others: Any) -> None:
            if issubclass(category, CalibrationWarning):
                click.echo(f"warning: {message}", err=True)
            else:
                usual(message, category, *place, **others)

        warnings.showwarning = show
        yield


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description:<9}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("source", total=None)

        def report(stage: str, done: int, total: int) -> None:
            bars.update(task, description=stage, completed=done, total=total or None)

        yield report


def _lines() -> Progress:
    last = ("", 0.0)

    def report(stage: str, done: int, total: int) -> None:
        nonlocal last
        fraction = done / total if total else 0.0
        if stage == last[0] and fraction < min(last[1] + _PLAIN_STEP, 1.0):
            return
        last = (stage, fraction)
        click.echo(f"{stage}: {fraction:.0%}" if total else stage, err=True)

    return report
