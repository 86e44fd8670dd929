"""The evaluation as one HTML file: tables, and plots as inline SVG.

The file refers to nothing outside itself, so that it can be opened from a disk or attached to a message.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from qtool.errors import OutputError
from qtool.evaluate import plots
from qtool.evaluate.plots import Mark, Plot, Series
from qtool.evaluate.report import ArtifactReport, Report

_LOWEST_KL = 1e-6
"""Smaller divergences are rounding; they are drawn at this one."""
_START = b"<!doctype html>"
COLOURS = 8
"""Colours of the template's palette, which repeat after that."""


def check_page(path: Path) -> None:
    """Refuses a place where a page cannot be written, before any work. A page that is there is replaced.

    Raises:
        OutputError: it is a folder, in no folder, not writable, or holds something else than a page.
    """
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise OutputError(
            f"the report {path} cannot be written", hint="Name a file in a folder that exists and is yours."
        )
    if path.exists() and not _is_page(path):
        raise OutputError(
            f"the report {path} would replace a file that is no HTML page", hint="Name another file."
        )


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_START)).lower() == _START


def write_page(report: Report, path: Path) -> None:
    """Writes the page.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.write_text(page(report), encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(
            f"the report {path} cannot be written: {error.strerror or error}",
            hint="Free some space, or choose another file.",
        ) from error


def page(report: Report) -> str:
    """Returns the page's text."""
    from jinja2 import Environment, StrictUndefined

    names = _names(report)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((resources.files(__package__) / "page.html.jinja").read_text("utf-8"))
    return template.render(
        report=report,
        plots=_plots(report.artifacts, names),
        names=names,
        width=plots.WIDTH,
        height=plots.HEIGHT,
        colours=COLOURS,
    )


def _plots(artifacts: Sequence[ArtifactReport], names: Sequence[str]) -> dict[str, Plot | None]:
    return {
        "distribution": distribution(artifacts, names),
        "size": size_and_quality(artifacts, names) if len(artifacts) > 1 else None,
        "layers": errors_by_layer(artifacts, names),
    }


def _names(report: Report) -> list[str]:
    """Returns the folders' names, or their paths where two have the same name."""
    names = [artifact.name for artifact in report.artifacts]
    return [
        artifact.name if names.count(artifact.name) == 1 else artifact.artifact
        for artifact in report.artifacts
    ]


def distribution(artifacts: Sequence[ArtifactReport], names: Sequence[str]) -> Plot:
    """Draws how many tokens have at most which divergence, a line for each artifact."""
    shares = [100 * np.cumsum(each.histogram.tokens) / sum(each.histogram.tokens) for each in artifacts]
    limits = np.array(artifacts[0].histogram.edges[1:])
    most = limits[max(int((share < 100).sum()) for share in shares)]
    x = plots.horizontal(*plots.decades(_LOWEST_KL, max(most, 1.0)), logarithmic=True)
    y = plots.vertical(0, 100)
    inside = (limits >= x.low * 0.999) & (limits <= x.high * 1.001)
    series = [
        Series(name, index, plots.line(limits[inside].tolist(), share[inside].tolist(), x, y))
        for index, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    return Plot(x, y, "KL divergence of a token, nats", "% of the tokens have at most this", series)


def size_and_quality(artifacts: Sequence[ArtifactReport], names: Sequence[str]) -> Plot:
    """Draws each artifact's mean divergence over its size, with two standard errors either way."""
    means = [max(each.kl.mean, _LOWEST_KL) for each in artifacts]
    sizes = [each.size / 1e6 for each in artifacts]
    x = plots.horizontal(0, max(sizes) * 1.1)
    y = plots.vertical(*plots.decades(min(means), max(means)), logarithmic=True)
    marks = []
    for index, (each, name, size, mean) in enumerate(zip(artifacts, names, sizes, means, strict=True)):
        error = 2 * each.kl.standard_error
        title = f"{name}: {size:,.1f} MB, KL {each.kl.mean:.4g} ± {error:.2g}"
        low, high = y.place(max(mean - error, y.low)), y.place(mean + error)
        anchor = "start" if size < max(sizes) * 0.7 else "end"
        marks.append(Mark(name, index, x.place(size), y.place(mean), low, high, title, anchor))
    return Plot(x, y, "size, MB", "mean KL divergence, nats", marks=marks)


def errors_by_layer(artifacts: Sequence[ArtifactReport], names: Sequence[str]) -> Plot | None:
    """Draws the relative error of each decoder layer's matrices; None for models without any."""
    errors: list[tuple[int, str, list[tuple[int, float]]]] = []
    for index, artifact in enumerate(artifacts):
        for group in ("attention", "mlp"):
            points = [
                (error.layer, 100 * error.relative)
                for error in artifact.weight_errors
                if error.group == group and error.layer is not None
            ]
            if points:
                errors.append((index, group, points))
    values = [value for _, _, points in errors for _, value in points]
    if not values:
        return None
    last = max(layer for _, _, points in errors for layer, _ in points)
    x = plots.horizontal(0, max(last, 1), whole=True)
    y = plots.vertical(0, max(max(values) * 1.1, 1e-6))
    series = [
        Series(
            f"{names[index]}, {group}",
            index,
            plots.line([layer for layer, _ in points], [value for _, value in points], x, y),
            dashed=group == "mlp",
        )
        for index, group, points in errors
    ]
    return Plot(x, y, "decoder layer", "relative error, %", series)
