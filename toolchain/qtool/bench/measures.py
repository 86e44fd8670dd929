"""The figures of a benchmark: where each is found, and how it is summed up and compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qtool.bench.lengths import Lengths
from qtool.bench.rounds import Contender, Figures

RATE, SECONDS, BYTES = "tokens/s", "s", "bytes"


@dataclass(frozen=True)
class Spread:
    """One figure: its value in each round, at least one."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle round, or the mean of the two in the middle; whole where the rounds are."""
        middle = statistics.median(self.rounds)
        return round(middle) if all(isinstance(value, int) for value in self.rounds) else middle

    @property
    def low(self) -> float:
        """The lowest round."""
        return min(self.rounds)

    @property
    def high(self) -> float:
        """The highest round."""
        return max(self.rounds)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {"median": self.median, "low": self.low, "high": self.high, "rounds": list(self.rounds)}


@dataclass(frozen=True)
class Measure:
    """Something that is measured in every round.

    Attributes:
        path: keys of the figure in the report.
        label: the same for people.
        unit: `RATE`, `SECONDS` or `BYTES`.
        values: one value of the round, or one for each turn; empty where the system cannot tell.
    """

    path: tuple[str, ...]
    label: str
    unit: str
    values: Callable[[Figures], Sequence[float]]

    def spread(self, contender: Contender) -> Spread | None:
        """Returns an engine's figure; turns count with their median."""
        rounds = [self.values(figures) for figures in contender.rounds]
        return Spread(tuple(map(statistics.median, rounds))) if rounds and all(rounds) else None

    def turns(self, contender: Contender) -> list[list[float]]:
        """Returns all values, by round."""
        return [list(self.values(figures)) for figures in contender.rounds]

    def ratio(self, ours: Contender, theirs: Contender) -> Spread | None:
        """Returns one engine's figure over another's; turns count with the median of their ratios."""
        rounds = [
            paired_ratio(self.values(one), self.values(other)).rounds
            for one, other in zip(ours.rounds, theirs.rounds, strict=True)
        ]
        return Spread(tuple(map(statistics.median, rounds))) if rounds and all(rounds) else None


def paired_ratio(ours: Iterable[float], theirs: Iterable[float]) -> Spread:
    """Returns ours / theirs for each pair of values that were measured side by side.

    What slows a machine down for a while slows both. Figures of two separate runs do not have that property.
    """
    return Spread(tuple(one / other for one, other in zip(ours, theirs, strict=True)))


def measures(lengths: Lengths) -> list[Measure]:
    """Returns everything that a benchmark of these lengths measures."""
    found = [_prompt_rate(length) for length in lengths.prompts]
    found += [_first_token(length) for length in lengths.prompts]
    found += [_decode_rate(depth) for depth in lengths.depths]
    found += [
        Measure(("import_seconds",), "import", SECONDS, lambda figures: [figures.import_seconds]),
        Measure(("load_seconds",), "load", SECONDS, lambda figures: [figures.load_seconds]),
        Measure(
            ("start_seconds",),
            "import and load",
            SECONDS,
            lambda figures: [figures.import_seconds + figures.load_seconds],
        ),
    ]
    found += [_memory("loaded", what) for what in ("resident", "anonymous", "peak")]
    found += [_memory("end", what) for what in ("resident", "anonymous", "peak")]
    return found


def _prompt_rate(length: int) -> Measure:
    return Measure(
        ("prompts", str(length), "tokens_per_second"),
        f"prompt of {length}",
        RATE,
        lambda figures: [length / figures.prompts[length]],
    )


def _first_token(length: int) -> Measure:
    return Measure(
        ("prompts", str(length), "time_to_first_token_seconds"),
        f"first token after {length}",
        SECONDS,
        lambda figures: [figures.prompts[length]],
    )


def _decode_rate(depth: int) -> Measure:
    return Measure(
        ("decode", str(depth), "tokens_per_second"),
        f"decode at depth {depth}",
        RATE,
        lambda figures: figures.decode[depth],
    )


def _memory(when: str, what: str) -> Measure:
    def values(figures: Figures) -> list[int]:
        memory = figures.memory_loaded if when == "loaded" else figures.memory_end
        return [memory[what]] if what in memory else []

    label = {"loaded": "after loading", "end": "at the end"}[when]
    return Measure(("memory_bytes", when, what), f"{what} memory {label}", BYTES, values)
