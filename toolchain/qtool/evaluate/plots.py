"""Geometry of the report's plots: from numbers to places in a drawing. What they look like is the template's.

A plot is `WIDTH` x `HEIGHT` units; its axes leave margins for labels. Numbers far from each other are drawn
on logarithmic axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 320
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 12, 44


@dataclass(frozen=True)
class Tick:
    """A mark on an axis.

    Attributes:
        place: along the axis, in units of the drawing.
        label: its number.
    """

    place: float
    label: str


@dataclass(frozen=True)
class Axis:
    """Maps numbers to places.

    Attributes:
        low: number at the axis' start.
        high: number at its end.
        start: place of the first.
        end: place of the last.
        logarithmic: whether equal ratios have equal distances.
        whole: whether only whole numbers are marked.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    whole: bool = False

    def place(self, value: float) -> float:
        """Returns where a number is drawn; numbers outside the axis are drawn at its ends."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[Tick]:
        """Marks at round numbers."""
        if self.logarithmic:
            return [Tick(self.place(10.0**power), _power(power)) for power in _decades(self.low, self.high)]
        steps = _round_steps(self.low, self.high, 1.0 if self.whole else 0.0)
        return [Tick(self.place(value), f"{value:,.6g}") for value in steps]


@dataclass(frozen=True)
class Series:
    """One artifact in a plot.

    Attributes:
        name: for the legend.
        index: which of the palette's colours.
        points: "x,y x,y …", as SVG takes it.
        dashed: whether a line is dashed.
    """

    name: str
    index: int
    points: str
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """A labelled point of a plot.

    Attributes:
        name: its label.
        index: which of the palette's colours.
        x: its place.
        y: its place.
        low: place of the lower end of its error bar.
        high: place of the upper end.
        title: what it shows, in words.
        anchor: "start" or "end": on which side of the label the point is.
    """

    name: str
    index: int
    x: float
    y: float
    low: float
    high: float
    title: str
    anchor: str


@dataclass(frozen=True)
class Plot:
    """Everything that a plot draws."""

    x: Axis
    y: Axis
    x_label: str
    y_label: str
    series: Sequence[Series] = ()
    marks: Sequence[Mark] = ()


def horizontal(low: float, high: float, *, logarithmic: bool = False, whole: bool = False) -> Axis:
    """Returns an axis along the bottom."""
    return Axis(low, high, LEFT, WIDTH - RIGHT, logarithmic, whole)


def vertical(low: float, high: float, *, logarithmic: bool = False) -> Axis:
    """Returns an axis along the left side, upwards."""
    return Axis(low, high, HEIGHT - BOTTOM, TOP, logarithmic)


def line(xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis) -> str:
    """Returns the points of a line, as SVG takes them."""
    return " ".join(f"{x.place(one):g},{y.place(two):g}" for one, two in zip(xs, ys, strict=True))


def decades(low: float, high: float) -> tuple[float, float]:
    """Returns powers of ten around positive numbers, at least one decade."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return 10.0**first, 10.0 ** max(last, first + 1)


def _decades(low: float, high: float) -> range:
    first, last = round(math.log10(low)), round(math.log10(high))
    return range(first, last + 1, max(1, (last - first) // 8))


def _round_steps(low: float, high: float, smallest: float) -> list[float]:
    """Returns up to eight multiples of 1, 2 or 5 times a power of ten."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if (high - low) / (factor * magnitude) <= 8)
    step = max(step, smallest)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _power(power: int) -> str:
    """Returns a power of ten for people: "0.01", "1,000", or "10⁻⁵"."""
    if -3 <= power <= 4:
        return f"{10.0**power:,g}"
    return "10" + str(power).translate(_SUPERSCRIPT)
