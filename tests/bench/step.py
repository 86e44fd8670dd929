"""What a decode step costs beside the kernels, what fused nodes save, and whether huge pages would help.

    python tests/bench/step.py around ARTIFACT
    python tests/bench/step.py fused ARTIFACT --rows 1 5
    python tests/bench/step.py huge-pages ARTIFACT --depth 1500

`around` lets two things take turns at the same depth: `generate`, with detokenization, sampling and metrics,
and the bare forward pass of the ONNX Runtime session that it runs, over and over with the same token bound.
The share is (generate - bare) / generate, by turn.

`fused` lets the kernel pack compute the same artifact with fused nodes and node by node, in forward passes of
some rows behind the cached ones. The ratio is that of the times, node by node / fused, by turn.

`huge-pages` lets two sessions of one model take turns: buffers as numpy allocates them, and buffers that lie
behind each other in memory of their own that asks for huge pages. The ratio is that of the times, plain /
huge, by turn.
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from measure import argument_parser, finish, say

from qtool.bench.bandwidth import read_bandwidth
from qtool_runtime import Model, kernels, load
from qtool_runtime.kv_cache import GROWTH_STEP, CacheLayout
from qtool_runtime.session import OnnxSession

HUGE_PAGE = 2 << 20


def around(model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the share of a step that is not the forward pass."""
    prompt = tokens(options.depth)
    budget = (options.turns + 1) * options.steps + 1
    stream = model.generate(prompt, max_tokens=budget, ignore_eos=True)
    stream.step()
    session = model.new_session()
    assert isinstance(session, OnnxSession)
    session.forward(prompt)
    shares, seconds = [], []
    for turn in range(options.turns + 1):
        session.forward([1] * (options.steps - 1))
        session.forward([1])  # leaves the inputs of a single token bound, at the depth of the other's turn
        started = time.perf_counter()
        for _ in range(options.steps):
            stream.step()
        middle = time.perf_counter()
        for _ in range(options.steps):
            session._graph.inference.run_with_iobinding(session._binding, session._run_options)
        ended = time.perf_counter()
        if turn:  # the first one warms up
            shares.append((middle - started - (ended - middle)) / (middle - started))
            seconds.append((middle - started) / options.steps)
    return {"share_around_kernels": spread(shares), "step_seconds": spread(seconds)}


def fused(model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the ratio of the times of forward passes node by node and with fused nodes."""
    with patch.object(kernels, "fuse", lambda nodes, *_: nodes), open_model(options) as parts:
        sessions = [each.new_session() for each in (parts, model)]
        for session in sessions:
            session.forward(tokens(options.depth))
        report: dict[str, Any] = {"read_bandwidth": read_bandwidth(options.threads)}
        for rows in options.rows:
            times: tuple[list[float], list[float]] = ([], [])
            for turn in range(options.turns + 1):
                for index in (0, 1) if turn % 2 else (1, 0):
                    started = time.perf_counter()
                    for _ in range(options.steps):
                        sessions[index].forward(tokens(rows))
                        sessions[index].truncate(options.depth)
                    if turn:
                        times[index].append((time.perf_counter() - started) / options.steps)
            report[f"rows_{rows}"] = {
                "parts_over_fused": spread([a / b for a, b in zip(*times, strict=True)]),
                "parts_seconds": spread(times[0]),
                "fused_seconds": spread(times[1]),
            }
    return report


def huge_pages(model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the ratio of the times of decode steps without and with huge pages for keys and values."""
    prompt, plain = tokens(options.depth), CacheLayout.zeros
    sessions = [model.new_session() for _ in range(2)]
    sessions[0].forward(prompt)
    CacheLayout.zeros = arena(model, options.depth + options.steps)  # type: ignore[method-assign]
    sessions[1].forward(prompt)
    CacheLayout.zeros = plain  # type: ignore[method-assign]
    ratios = []
    for turn in range(options.turns + 1):
        taken = {}
        for index in (0, 1) if turn % 2 else (1, 0):
            started = time.perf_counter()
            for token in range(options.steps):
                sessions[index].forward([token])
            taken[index] = time.perf_counter() - started
            sessions[index].truncate(options.depth)
        if turn:
            ratios.append(taken[0] / taken[1])
    return {"plain_over_huge": spread(ratios), "huge_kilobytes": huge_kilobytes()}


def arena(model: Model, most: int) -> Any:
    """Returns a stand-in for `CacheLayout.zeros` that takes all buffers from one map of huge pages."""
    bytes_needed = 2 * model.manifest.kv_cache.bytes_per_token * (most + GROWTH_STEP)
    memory = mmap.mmap(-1, bytes_needed + HUGE_PAGE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    everything = np.frombuffer(memory, np.uint8)
    position = -everything.ctypes.data % HUGE_PAGE

    def zeros(layout: CacheLayout, count: int) -> np.ndarray[Any, Any]:
        nonlocal position
        shape = (1, layout.heads, count, layout.head_dim)
        size = int(np.prod(shape)) * layout.dtype.itemsize
        buffer = everything[position : position + size].view(layout.dtype).reshape(shape)
        position += -(-size // 64) * 64
        return buffer

    return zeros


def huge_kilobytes() -> int:
    """Returns how much of this process's memory is in huge pages, to see that the kernel gave some."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


def open_model(options: argparse.Namespace) -> Model:
    """Loads the artifact."""
    return load(options.artifact, threads=options.threads, kernels=options.kernels, prefix_memory=0)


def tokens(count: int) -> list[int]:
    """Returns the same ordinary tokens each time."""
    return np.random.default_rng(0).integers(0, 250, count).tolist()


def spread(values: list[float]) -> dict[str, float]:
    """Returns median, lowest and highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    """Reads the command line."""
    parser = argument_parser(__doc__)
    measures = {"around": around, "fused": fused, "huge-pages": huge_pages}
    parser.add_argument("what", choices=measures)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--depth", type=int, default=64, help="tokens in the cache (default 64)")
    parser.add_argument("--steps", type=int, default=16, help="decode steps in a turn (default 16)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 5], help="of a pass of `fused`")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kernels", default="auto", help="see `qtool_runtime.load` (default auto)")
    options = parser.parse_args()
    with open_model(options) as model:
        time.sleep(1)  # the weights move into huge pages
        report = measures[options.what](model, options)
        say(f"{options.what}, kernels of {model.kernels.name}, {options.threads} threads: {report}")
        finish({"kernels": model.kernels.name, "depth": options.depth, **report})


if __name__ == "__main__":
    main()
