"""The measuring itself: several rounds, in each of which the engines take turns.

The speed of a machine that does other work too drifts more from second to second than engines differ, so that
figures of separate runs cannot be compared. Here everything is interleaved. In each round every engine is
started anew, because two processes of the same engine can differ by some percent for as long as they live, by
where their memory happens to lie. Then all of them read the same prompt, one after the other, and generate a
few tokens each in turn; the order rotates. Only what was measured side by side is compared (see `report.py`).
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from qtool.bench.lengths import Lengths, prompt_of
from qtool.bench.process import EngineProcess, started
from qtool.errors import EngineError

Item = TypeVar("Item")
Progress = Callable[[str], None]

PAUSE_SECONDS = 0.05
"""Between two engines' measurements: the threads of the one before keep spinning for a while."""


@dataclass
class Figures:
    """What one round has measured of one engine.

    Attributes:
        import_seconds: time to import the engine's packages.
        load_seconds: time from there until it can take a prompt, with the files in the page cache.
        memory_loaded: bytes after that (see `worker.memory`).
        memory_end: bytes at the end of the round.
        prompts: seconds from a request to its first token, by the prompt's length in tokens.
        decode: tokens per second of each turn, by depth.
        kernels: what computes, where the engine has a choice.
    """

    import_seconds: float
    load_seconds: float
    memory_loaded: dict[str, int]
    memory_end: dict[str, int] = field(default_factory=dict)
    prompts: dict[int, float] = field(default_factory=dict)
    decode: dict[int, list[float]] = field(default_factory=dict)
    kernels: str | None = None


@dataclass
class Contender:
    """An engine with its model, and what has been measured of it.

    Attributes:
        engine: name in `worker.ENGINES`.
        model: file or folder that it loads.
        python: interpreter that has its packages.
        provider: where it runs; "" for the model's own choice.
        required: whether its failure ends the benchmark, rather than its own part in it.
        version: of its package, where it is known.
        rounds: one entry for each round.
        failure: why it is out of the running; None while it is in.
    """

    engine: str
    model: Path
    python: str
    provider: str
    required: bool
    version: str | None = None
    rounds: list[Figures] = field(default_factory=list)
    failure: EngineError | None = None

    def fail(self, error: EngineError) -> None:
        """Takes the engine out of the running, or raises the error if it is required."""
        if self.required:
            raise error
        self.failure = error


@dataclass(frozen=True)
class Conditions:
    """What is the same for all engines.

    Attributes:
        lengths: what is measured.
        threads: CPU threads of each engine.
        kernels: what computes in qtool's runtime; see `qtool_runtime.load`.
        token_limit: prompts are made of token ids below it, ordinary ones of the model's vocabulary.
    """

    lengths: Lengths
    threads: int
    kernels: str
    token_limit: int


class Runner:
    """One engine's process in one round."""

    def __init__(self, contender: Contender, process: EngineProcess, conditions: Conditions) -> None:
        self.contender = contender
        self._process = process
        loaded = process.ask(
            load={
                "model": str(contender.model),
                "threads": conditions.threads,
                "capacity": conditions.lengths.capacity,
                "provider": contender.provider,
                "kernels": conditions.kernels,
            }
        )
        self.figures = Figures(**loaded, memory_loaded=process.ask(memory=True))

    def read(self, ids: list[int], tokens: int) -> None:
        """Reads a prompt, to be continued by so many tokens, and notes the time to the first token."""
        self.figures.prompts[len(ids)] = self._process.ask(prompt=ids, tokens=tokens)["seconds"]

    def advance(self, tokens: int, depths: Sequence[int]) -> None:
        """Generates further tokens, and notes the rate at these depths."""
        rate = tokens / self._process.ask(advance=tokens)["seconds"]
        for depth in depths:
            self.figures.decode.setdefault(depth, []).append(rate)

    def finish(self) -> None:
        """Notes the memory."""
        self.figures.memory_end = self._process.ask(memory=True)


def measure(
    contenders: Sequence[Contender],
    conditions: Conditions,
    rounds: int,
    *,
    bandwidth: Callable[[], float] | None,
    progress: Progress,
) -> list[float]:
    """Measures all engines, and adds what comes of it to them.

    Args:
        contenders: engines that can run; one that fails is out of the running from then on.
        conditions: what is measured.
        rounds: how often.
        bandwidth: measures the memory's read bandwidth, once a round; None where that says nothing.
        progress: is told a line of text now and then.

    Returns:
        The bandwidth of each round, if it was measured.

    Raises:
        EngineError: a required engine failed.
    """
    for contender in contenders:
        progress(f"loading {contender.engine}")
        try:
            with started(contender.engine, contender.python) as process:
                Runner(contender, process, conditions)  # brings the files into the page cache
        except EngineError as error:
            contender.fail(error)
    limits = []
    for number in range(rounds):
        if bandwidth is not None:
            limits.append(bandwidth())
        left = [contender for contender in contenders if contender.failure is None]
        measure_round(rotated(left, number), conditions, number)
        progress(f"round {number + 1} of {rounds}: {summary(left)}")
    return limits


def measure_round(contenders: Sequence[Contender], conditions: Conditions, number: int) -> None:
    """Starts every engine, measures it, and ends it.

    Raises:
        EngineError: a required engine failed.
    """
    lengths = conditions.lengths
    with ExitStack() as stack:
        runners = []
        for contender in contenders:
            try:
                process = stack.enter_context(started(contender.engine, contender.python))
                runners.append(Runner(contender, process, conditions))
            except EngineError as error:
                contender.fail(error)
        for length in lengths.readings:
            ids = prompt_ids(length, number, conditions.token_limit)
            depths = [depth for depth in lengths.depths if prompt_of(depth) == length]
            runners = each(runners, Runner.read, ids, lengths.tokens if depths else 0)
            for tokens in lengths.turns if depths else ():
                runners = rotated(each(runners, Runner.advance, tokens, depths), 1)
        for runner in each(runners, Runner.finish):
            runner.contender.rounds.append(runner.figures)


def each(runners: Sequence[Runner], action: Callable[..., None], *arguments: object) -> list[Runner]:
    """Lets the engines do something, one after the other; returns those that could.

    Raises:
        EngineError: a required engine failed.
    """
    left = []
    for runner in runners:
        if len(runners) > 1:
            time.sleep(PAUSE_SECONDS)
        try:
            action(runner, *arguments)
            left.append(runner)
        except EngineError as error:
            runner.contender.fail(error)
    return left


def prompt_ids(length: int, number: int, limit: int) -> list[int]:
    """Returns the token ids of a prompt: the same for every engine, different in every round and length.

    Not even their beginnings are the same, so that no engine can answer from what it remembers of another.
    """
    return random.Random(f"{number} {length}").choices(range(limit), k=length)


def rotated(items: Sequence[Item], count: int) -> list[Item]:
    """Returns the items in the same order, beginning with another one."""
    at = count % len(items) if items else 0
    return [*items[at:], *items[:at]]


def summary(contenders: Sequence[Contender]) -> str:
    """Says in a few words what the last round measured."""
    parts = []
    for contender in contenders:
        if contender.failure is not None:
            parts.append(f"{contender.engine} failed")
            continue
        figures = contender.rounds[-1]
        if figures.decode:
            rate, what = statistics.median(figures.decode[min(figures.decode)]), "decode"
        else:
            length = max(figures.prompts)
            rate, what = length / figures.prompts[length], "prompt"
        parts.append(f"{contender.engine} {rate:.1f} {what} tokens/s")
    return ", ".join(parts)
