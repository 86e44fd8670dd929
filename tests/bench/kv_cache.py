"""An int8 KV cache beside a float one: speed with many tokens cached, and the cost of one scale a tensor.

    qtool build MODEL --target x64-int4 -o float32
    qtool build MODEL --target x64-int4 --kv-cache int8 -o int8
    python tests/bench/kv_cache.py speed float32 int8
    python tests/bench/kv_cache.py per-tensor int8 int8-per-tensor
    python tests/bench/quality.py --reference float32 --text TEXT --window 2048 int8 int8-per-tensor

`speed` reads DEPTH tokens into both, then lets them take turns: some decode steps, then a chunk of a prompt,
each forgotten again. Every round is a process of its own. Ratios are int8 / float32 of the time, by turn.

`per-tensor` copies an int8 artifact and gives all channels of a cached tensor the largest of their scales,
which computes what the operator's mode for one scale a tensor computes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import argument_parser, finish, rounded, run_child, say


def measure_turns(options: argparse.Namespace) -> dict[str, Any]:
    """Runs one round in this process; returns seconds by kind, turn and artifact, and bytes a token."""
    import qtool_runtime

    tokens = np.random.default_rng(0).integers(0, 20_000, options.depth + options.chunk)
    prompt, chunk = tokens[: options.depth], tokens[options.depth :]
    models = [
        qtool_runtime.load(path, threads=options.threads, prefix_memory=0)
        for path in (options.float32, options.int8)
    ]
    sessions = [model.new_session() for model in models]
    for session in sessions:
        session.forward(prompt)

    def decode(session: Any) -> None:
        for token in chunk[: options.steps]:
            session.forward([token])

    def prefill(session: Any) -> None:
        session.forward(chunk)

    seconds: dict[str, list[list[float]]] = {"decode": [], "prefill": []}
    works: dict[str, Callable[[Any], None]] = {"decode": decode, "prefill": prefill}
    for turn in range(options.turns + 1):
        for kind, work in works.items():
            taken = []
            for session in sessions if turn % 2 else reversed(sessions):
                started = time.perf_counter()
                work(session)
                taken.append(time.perf_counter() - started)
                session.truncate(options.depth)
            if turn:  # the first one warms up
                seconds[kind].append(taken if turn % 2 else taken[::-1])
    return {"seconds": seconds, "bytes": [model.manifest.kv_cache.bytes_per_token for model in models]}


def speed(options: argparse.Namespace) -> None:
    """Runs the rounds and prints the ratios."""
    if options.round:
        finish(measure_turns(options))
        return
    rounds = []
    for number in range(options.rounds):
        child = run_child([sys.executable, __file__, *sys.argv[1:], "--round"])
        rounds.append(child.result)
        say(f"round {number + 1} of {options.rounds}")
    report: dict[str, Any] = {"depth": options.depth, "bytes_per_token": rounds[0]["bytes"]}
    for kind in ("decode", "prefill"):
        by_round = [[other / one for one, other in result["seconds"][kind]] for result in rounds]
        turns = [ratio for ratios in by_round for ratio in ratios]
        medians = [statistics.median(ratios) for ratios in by_round]
        report[kind] = {"by_turn": spread(turns), "by_round": spread(medians)}
    say(json.dumps(rounded(report), indent=2))
    finish(report)


def spread(ratios: list[float]) -> dict[str, float]:
    """Returns median, lowest and highest."""
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def per_tensor(options: argparse.Namespace) -> None:
    """Writes the copy with one scale a tensor."""
    import onnx
    from onnx import numpy_helper

    shutil.copytree(options.int8, options.output)
    model = onnx.load(options.output / "model.onnx", load_external_data=False)
    scales = [tensor for tensor in model.graph.initializer if tensor.name.startswith("present.")]
    for tensor in scales:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, values.max()), tensor.name))
    onnx.save(model, options.output / "model.onnx")
    finish({"scales": len(scales)})


def main() -> None:
    """Reads the command line."""
    parser = argument_parser(__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("speed")
    command.add_argument("float32", type=Path)
    command.add_argument("int8", type=Path)
    command.add_argument("--depth", type=int, default=1500, help="tokens in the cache (default 1500)")
    command.add_argument("--steps", type=int, default=16, help="decode steps in a turn (default 16)")
    command.add_argument("--chunk", type=int, default=128, help="tokens of a prefill turn (default 128)")
    command.add_argument("--turns", type=int, default=8)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--threads", type=int, default=2)
    command.add_argument("--round", action="store_true", help=argparse.SUPPRESS)
    command.set_defaults(action=speed)
    command = commands.add_parser("per-tensor")
    command.add_argument("int8", type=Path)
    command.add_argument("output", type=Path)
    command.set_defaults(action=per_tensor)
    options = parser.parse_args()
    options.action(options)


if __name__ == "__main__":
    main()
