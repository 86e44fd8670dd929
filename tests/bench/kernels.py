"""Speed of each kernel of the pack, beside onnxruntime's on the same weights and beside its own limit.

    python tests/bench/kernels.py [--shape 4864x896 --shape 151936x896] [--rows 1 4 16 128] [--format 4/32]

For each shape (columns x depth) and number of rows, the instruction sets and onnxruntime's MatMulNBits take
turns. `gigabytes` is the weights' bytes in a second, `gigaoperations` counts two for each weight and row, and
`ratio` is the time of onnxruntime / ours, by turn. A kernel can be no faster than memory is read
(`read_bandwidth`; if the caches do not hold the matrix) nor than bytes are multiplied (`peaks`: a loop of the
instruction set's products that wait for nothing, on as many threads): `limit` is the one that is closer, and
`of_limit` the part of it that is reached. Both limits are measured at the run's start and end, and the better
ones count; weights in a cache can be read faster than the first.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
from measure import argument_parser, finish, paired_ratio, say
from onnx import TensorProto, helper, numpy_helper

import qtool_kernels
from qtool.bench.bandwidth import read_bandwidth

OURS, THEIRS = "qtool.kernels", "com.microsoft"

PEAK_TURNS = 12
"""The best one counts; the first ones find how many rounds take 50 ms."""


def main() -> None:
    """Runs the benchmark."""
    options = parse()
    limits = [measure_limits(options)]
    results = [
        result
        for shape in options.shape
        for weight_format in options.format
        for result in measure_shape(shape, weight_format, options)
    ]
    limits.append(measure_limits(options))  # the better one counts: a machine's neighbours come and go
    bandwidth = max(of_memory for of_memory, _ in limits)
    peaks = {name: max(of_products[name] for _, of_products in limits) for name in options.set}
    say(f"read bandwidth, {options.threads} threads: {bandwidth / 1e9:.1f} GB/s")
    for name, operations in peaks.items():
        say(f"products of bytes, {options.threads} threads, {name}: {operations / 1e9:.0f} GOP/s")
    results = [with_limit(result, bandwidth, peaks) for result in results]
    finish({"read_bandwidth": bandwidth, "peaks": peaks, "threads": options.threads, "kernels": results})


def measure_limits(options: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """Returns bytes that are read in a second, and operations in a second of each instruction set."""
    return read_bandwidth(options.threads), {name: peak(name, options.threads) for name in options.set}


def peak(name: str, threads: int) -> float:
    """Measures how many multiplications and additions of bytes threads do in a second, together.

    Args:
        name: the instruction set.
        threads: each repeats the same product, whose operands are in registers or the nearest cache.
    """
    repeat = ctypes.CDLL(str(qtool_kernels.library_path())).qtool_kernels_repeat_products
    repeat.argtypes, repeat.restype = [ctypes.c_char_p, ctypes.c_int64], ctypes.c_int64
    rounds, best = 1 << 16, 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PEAK_TURNS):
            started = time.perf_counter()
            operations = sum(pool.map(repeat, [name.encode()] * threads, [rounds] * threads))
            seconds = time.perf_counter() - started
            best = max(best, operations / seconds)
            rounds = int(rounds * min(8, max(0.5, 0.05 / seconds)))
    return best


def with_limit(result: dict[str, Any], bandwidth: float, peaks: dict[str, float]) -> dict[str, Any]:
    """Adds a record's limit, says the record, and returns it."""
    of_memory = result["gigabytes"] * 1e9 / bandwidth
    of_products = result["gigaoperations"] * 1e9 / peaks[result["set"]]
    ratio = result["ratio"]["median"]
    result["limit"] = "memory" if of_memory > of_products else "products"
    result["of_limit"] = max(of_memory, of_products)
    say(
        f"{result['shape']} {result['format']} rows {result['rows']:3d} {result['set']:12s}"
        f"{result['microseconds']:9.0f} us {result['gigabytes']:6.1f} GB/s "
        f"{result['gigaoperations']:6.0f} GOP/s: {result['of_limit']:4.0%} of {result['limit']:8s} "
        f"{ratio:.2f} x onnxruntime"
    )
    return result


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--shape", type=numbers, action="append", help="columns x depth, such as 4864x896")
    parser.add_argument("--format", type=numbers, action="append", help="bits / block size, such as 4/32")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 5, 16, 128])
    parser.add_argument("--set", action="append", help="instruction set; default: all but the portable one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    options.shape = options.shape or [(4864, 896), (151936, 896)]
    options.format = options.format or [(4, 32), (4, 128), (8, 32)]
    options.set = options.set or [name for name in qtool_kernels.instruction_sets() if name != "portable"]
    return options


def numbers(text: str) -> tuple[int, int]:
    """Reads "4864x896" or "4/32"."""
    first, _, second = text.replace("/", "x").partition("x")
    return int(first), int(second)


def measure_shape(
    shape: tuple[int, int], weight_format: tuple[int, int], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Returns a record for each number of rows and instruction set."""
    columns, depth = shape
    sessions = {"onnxruntime": session(THEIRS, shape, weight_format, options.threads)}
    for name in options.set:
        qtool_kernels.select(name)
        sessions[name] = session(OURS, shape, weight_format, options.threads)
    bits, block_size = weight_format
    blocks = columns * depth / block_size
    size = blocks * (block_size * bits / 8 + 4 + bits / 8)
    records = []
    for rows in options.rows:
        times = measure_rows(sessions, rows, depth, options.turns, 2 * rows * columns * depth)
        for name in options.set:
            best = min(times[name])
            record = {
                "shape": f"{columns}x{depth}",
                "format": f"{bits}/{block_size}",
                "rows": rows,
                "set": name,
                "microseconds": best * 1e6,
                "gigabytes": size / best / 1e9,
                "gigaoperations": 2 * rows * columns * depth / best / 1e9,
                "ratio": paired_ratio(times["onnxruntime"], times[name]),
            }
            records.append(record)
    return records


def measure_rows(
    sessions: dict[str, Any], rows: int, depth: int, turns: int, operations: int
) -> dict[str, list[float]]:
    """Returns seconds per product of each session, a number for each turn."""
    x = np.random.default_rng(0).standard_normal((rows, depth)).astype(np.float32)
    repeats = max(2, int(4e9 / operations))
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(turns + 1):
        for name, inference in sessions.items():
            binding = inference.io_binding()
            binding.bind_cpu_input("A", x)
            binding.bind_output("Y")
            started = time.perf_counter()
            for _ in range(repeats):
                inference.run_with_iobinding(binding)
            if turn:  # the first one warms up
                times[name].append((time.perf_counter() - started) / repeats)
    return times


def session(domain: str, shape: tuple[int, int], weight_format: tuple[int, int], threads: int) -> Any:
    """A session of one MatMulNBits with zero points."""
    (columns, depth), (bits, block_size) = shape, weight_format
    random, blocks = np.random.default_rng(0), -(-depth // block_size)
    initializers = {
        "B": random.integers(0, 256, (columns, blocks, block_size * bits // 8), dtype=np.uint8),
        "scales": random.random((columns, blocks), dtype=np.float32),
        "zero_points": random.integers(0, 256, (columns, -(-blocks * bits // 8)), dtype=np.uint8),
    }
    attributes = {"K": depth, "N": columns, "bits": bits, "block_size": block_size, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["A", *initializers], ["Y"], domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["rows", depth])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["rows", columns])],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
    if domain == OURS:
        options.register_custom_ops_library(str(qtool_kernels.library_path()))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


if __name__ == "__main__":
    main()
