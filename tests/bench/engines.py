"""Both engines of the runtime over one artifact, in one process and in alternating turns.

    python tests/bench/engines.py ARTIFACT [--threads N] [--lengths 128 600 2000] [--rounds N] [--tokens N]

Each round reads a prompt of each length with both engines, then generates after it in turns of a few tokens.
Ratios are rates of onnxruntime over rates of genai. Memory of one engine alone is what memory.py prints.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from measure import argument_parser, finish, paired_ratio, say

import qtool_runtime
from qtool_runtime import Model, TextStream

TURNS = 4


def main() -> None:
    """Measures one artifact."""
    parser = argument_parser(__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 600, 2000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8, help="in each of four turns a round")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    with (
        qtool_runtime.load(options.artifact, threads=options.threads) as ours,
        qtool_runtime.load(options.artifact, threads=options.threads, engine="genai") as theirs,
    ):
        for length in options.lengths:
            prefill: dict[str, list[float]] = {ours.engine: [], theirs.engine: []}
            decode: dict[str, list[float]] = {ours.engine: [], theirs.engine: []}
            for number in range(options.rounds):
                models = (ours, theirs) if number % 2 else (theirs, ours)
                measure(models, length, options.tokens, prefill, decode)
            report[str(length)] = {
                "prefill": paired_ratio(*prefill.values()),
                "decode": paired_ratio(*decode.values()),
                "rates": {name: statistics.median(rates) for name, rates in decode.items()},
            }
            say(f"{length} tokens: {report[str(length)]}")
    finish(report)


def measure(
    models: tuple[Model, Model],
    length: int,
    tokens: int,
    prefill: dict[str, list[float]],
    decode: dict[str, list[float]],
) -> None:
    """Adds one round: a prompt for each model, then turns of so many tokens."""
    prompt = [1000 + (7919 * index) % 20011 for index in range(length)]
    streams: dict[str, TextStream] = {}
    for model in models:
        stream = model.generate(prompt, max_tokens=TURNS * tokens + 1, ignore_eos=True)
        stream.step()
        prefill[model.engine].append(stream.stats.prefill_rate)
        streams[model.engine] = stream
    for _ in range(TURNS):
        for name, stream in streams.items():
            before = stream.stats.decode_seconds
            for _ in range(tokens):
                stream.step()
            decode[name].append(tokens / (stream.stats.decode_seconds - before))
    for stream in streams.values():
        stream.close()


if __name__ == "__main__":
    main()
