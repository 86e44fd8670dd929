"""Throughput of several answers generated together, against one answer alone, in alternating turns.

    python tests/bench/batch.py ARTIFACT [--threads N] [--sizes 2 4 8] [--rounds N] [--tokens N]

Prompts of different lengths are read first. Then each turn generates as many tokens for every answer; the
rate is tokens of all answers per second, sampling and text included. Also checked: whether the answers are
those of single runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from measure import argument_parser, finish, paired_ratio, say

import qtool_runtime
from qtool_runtime import Answers, Model

PROMPTS = (
    "The history of the lighthouse begins with",
    "def quicksort(items):\n    if len(items) < 2:\n        return items\n",
    "In mathematics, a group is",
    "Once upon a time there was a village, far from every road, where everyone knew each other. One day",
    "Rain",
    "The three most important things to know about bread are",
    "Dear neighbours,",
    "import json\n\n\ndef read(path):\n",
)


def main() -> None:
    """Measures one artifact."""
    parser = argument_parser(__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    report: dict[str, Any] = {}
    with qtool_runtime.load(options.artifact, threads=options.threads, prefix_memory=0) as model:
        single = [stream.token_ids for stream in run(model, 1, options.tokens)]
        for size in options.sizes:
            rates: dict[int, list[float]] = {1: [], size: []}
            for number in range(options.rounds):
                for count in (1, size) if number % 2 else (size, 1):
                    rates[count].append(rate(model, count, options.tokens))
            ratio = paired_ratio(rates[size], rates[1])
            together = [stream.token_ids for stream in run(model, size, options.tokens)]
            equal = sum(one == two for one, two in zip(together, single, strict=True))
            report[str(size)] = {"ratio": ratio, "equal_answers": f"{equal} of {len(single)}"}
            say(f"{size} at once: {report[str(size)]}")
    finish(report)


def run(model: Model, size: int, tokens: int) -> Answers:
    """Answers all prompts, `size` at once."""
    answers = model.generate_batch(PROMPTS, at_once=size, max_tokens=tokens, ignore_eos=True)
    answers.read()
    return answers


def rate(model: Model, size: int, tokens: int) -> float:
    """Returns tokens per second of all answers together, once their prompts have been read."""
    answers = model.generate_batch(PROMPTS[:size], at_once=size, max_tokens=tokens + 1, ignore_eos=True)
    answers.step()  # reads the prompts
    started = time.perf_counter()
    for _ in range(tokens):
        answers.step()
    return size * tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
