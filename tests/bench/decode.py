"""Prefill and decode rate, load time and memory of qtool's runtime, against other engines, in one run.

    python tests/bench/decode.py ARTIFACT --llama-python PYTHON --llama-gguf model-q4_0.gguf

Engines, each in a process of its own (see engines.py):

- qtool: `qtool_runtime` with `--threads` threads;
- genai: onnxruntime-genai's Generator over the *same artifact*, with as many threads (a copy of
  genai_config.json says so; the weights are linked);
- genai-default: the same with the artifact's genai_config.json as it is;
- llama: llama.cpp through llama-cpp-python over a GGUF file of the same model (requantize.py makes one).

Everything is interleaved, because the machine's speed drifts more from second to second than between engines.
In each round every engine is started anew, reads a prompt of 512 tokens, then one of 128, and then they take
turns in generating 16 tokens each until they have 128; the order rotates. Compared are medians of the ratios
of one turn, and of the medians of one round: two processes of the *same* engine differ by up to 6 percent for
as long as they live, by where their memory happens to lie, so that several rounds are needed. The time to the
first token counts as prefill. qtool's decode time includes text output, that of the others does not.

On a machine that does other work too, measure with one thread as well: two threads that wait for each other
at every layer lose far more than half their speed when something takes one of their processors. The load
average is printed, so that a reader can tell.

Start time is from the engine's import until it is ready, with the files in the page cache (an extra start
fills it); memory is VmRSS after loading (of which anonymous: what the kernel cannot drop), and VmHWM at the
end of a round, both with the interpreter and the tokenizer. All are medians of the rounds.

The read-bandwidth limit is measured between the engines of the same rounds: as many threads as the engines
have, each with a dot product of a 256 MB float32 vector with itself (one stream of reads, no writes, far
beyond any cache). The fraction is weight bytes that a token reads * tokens per second / bandwidth, best
round of both. Weight bytes are the artifact's matrices, less an embedding that is not the LM head too, as a
token reads one row of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from measure import MEGABYTE, argument_parser, finish, paired_ratio, say

Item = TypeVar("Item")

HERE = Path(__file__).resolve().parent
PROMPTS = (512, 128)
"""The second one is continued."""
TURN = 16
TURNS = 8
PAUSE_SECONDS = 0.05
"""Between two measurements: the threads of the engine before keep spinning for a while."""


@dataclass
class Contender:
    """An engine with its model, and what has been measured of it."""

    label: str
    command: list[str]
    starts: list[float] = field(default_factory=list)
    memory: list[dict[str, int]] = field(default_factory=list)
    prefill: dict[int, list[float]] = field(default_factory=lambda: {count: [] for count in PROMPTS})
    decode: list[float] = field(default_factory=list)

    def rates(self) -> dict[str, list[float]]:
        """Returns tokens per second in each round."""
        return {"decode": self.decode, **{f"prefill_{count}": rates for count, rates in self.prefill.items()}}

    def summary(self) -> dict[str, Any]:
        """Returns medians: seconds, bytes, tokens per second."""
        return {
            "start_seconds": statistics.median(self.starts),
            **{
                f"{what}_bytes": statistics.median(memory[what] for memory in self.memory)
                for what in ("resident", "anonymous", "peak")
            },
            **{what: statistics.median(rates) for what, rates in self.rates().items()},
            **{f"best_{what}": max(rates) for what, rates in self.rates().items()},
        }


class Worker:
    """A running engine process."""

    def __init__(self, contender: Contender) -> None:
        self._process = subprocess.Popen(
            contender.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.started: dict[str, Any] = self._answer()

    def ask(self, **request: object) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"failed, run it by hand: {' '.join(map(str, self._process.args))}")  # type: ignore[arg-type]
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def started(contender: Contender) -> Iterator[Worker]:
    """Starts an engine, and ends it."""
    worker = Worker(contender)
    try:
        yield worker
    finally:
        worker.close()


def with_threads(artifact: Path, folder: Path, threads: int) -> Path:
    """Links an artifact's files, but for a configuration that tells onnxruntime-genai its threads."""
    folder.mkdir()
    for path in artifact.iterdir():
        (folder / path.name).hardlink_to(path.resolve())
    config = folder / "genai_config.json"
    document = json.loads(config.read_text())
    document["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = threads
    config.unlink()
    config.write_text(json.dumps(document, indent=2))
    return folder


def bytes_per_token(artifact: Path) -> int:
    """Returns how many bytes of weights each decoded token reads."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    groups = {group["group"]: group["bytes"] for group in manifest["quantization"]}
    if "lm_head" in groups:
        del groups["embedding"]
    return sum(groups.values())


def bandwidth_meter(threads: int) -> Callable[[], float]:
    """Returns a function that measures the read bandwidth of this process's threads, in bytes a second."""
    # One thread per call: numpy's BLAS would start its own.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    vectors = [np.ones(64_000_000, np.float32) for _ in range(threads)]
    pool = ThreadPoolExecutor(threads)

    def measure() -> float:
        begin = time.perf_counter()
        list(pool.map(lambda vector: np.dot(vector, vector), vectors))
        return sum(vector.nbytes for vector in vectors) / (time.perf_counter() - begin)

    return measure


def run(contenders: Sequence[Contender], rounds: int, bandwidth: Callable[[], float]) -> list[float]:
    """Measures everything, and returns the bandwidth of each round."""
    for contender in contenders:
        with started(contender):  # brings the files into the page cache
            pass
    limits = []
    for number in range(rounds):
        limits.append(bandwidth())
        measure_round(rotated(contenders, number), number)
        rates = (f"{item.label} {statistics.median(item.decode[-TURNS:]):.1f}" for item in contenders)
        say(f"round {number + 1} of {rounds}: {limits[-1] / 1e9:.1f} GB/s, decode {', '.join(rates)}")
    return limits


def measure_round(contenders: Sequence[Contender], number: int) -> None:
    """Starts every engine, adds one round of rates, and ends them."""
    with ExitStack() as stack:
        pairs = []
        for contender in contenders:
            worker = stack.enter_context(started(contender))
            contender.starts.append(worker.started["import"] + worker.started["load"])
            contender.memory.append(worker.started["memory"])
            pairs.append((contender, worker))
        for count in PROMPTS:
            for contender, worker in pairs:
                time.sleep(PAUSE_SECONDS)
                contender.prefill[count].append(worker.ask(prompt=count)["rate"])
        for turn in range(TURNS):
            for contender, worker in rotated(pairs, turn):
                time.sleep(PAUSE_SECONDS)
                contender.decode.append(worker.ask(tokens=TURN)["rate"])
        for contender, worker in pairs:
            contender.memory[-1]["peak"] = worker.ask(memory=True)["peak"]


def rotated(items: Sequence[Item], count: int) -> list[Item]:
    """Returns the items in the same order, beginning with another one."""
    at = count % len(items)
    return [*items[at:], *items[:at]]


def ratios(contenders: Sequence[Contender]) -> dict[str, Any]:
    """Returns the first contender's rates over those of each other one: turn by turn, and round by round."""
    ours, *others = contenders
    return {
        other.label: {
            **{what: paired_ratio(rates, other.rates()[what]) for what, rates in ours.rates().items()},
            "decode_by_round": paired_ratio(by_round(ours.decode), by_round(other.decode)),
            "start_seconds": paired_ratio(ours.starts, other.starts),
        }
        for other in others
    }


def by_round(rates: Sequence[float]) -> list[float]:
    """Returns the median of each round's turns."""
    return [statistics.median(rates[at : at + TURNS]) for at in range(0, len(rates), TURNS)]


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("artifact", type=Path, help="folder that qtool build wrote")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--engines", default="qtool,genai,genai-default,llama", help="which, separated by commas"
    )
    parser.add_argument("--genai-python", default=sys.executable, help="interpreter with onnxruntime-genai")
    parser.add_argument("--llama-python", help="interpreter with llama-cpp-python; no llama without it")
    parser.add_argument("--llama-gguf", type=Path, help="GGUF file of the same model, such as Q4_0")
    return parser.parse_args()


def contenders_of(arguments: argparse.Namespace, folder: Path) -> list[Contender]:
    """Returns the engines that were asked for and can run."""
    script, threads = str(HERE / "engines.py"), str(arguments.threads)
    artifact = arguments.artifact.resolve()
    commands = {
        "qtool": [sys.executable, script, "qtool", str(artifact), threads],
        "genai": [
            arguments.genai_python,
            script,
            "genai",
            str(with_threads(artifact, folder / "artifact", arguments.threads)),
            threads,
        ],
        "genai-default": [arguments.genai_python, script, "genai", str(artifact), "0"],
    }
    if arguments.llama_python and arguments.llama_gguf:
        commands["llama"] = [arguments.llama_python, script, "llama", str(arguments.llama_gguf), threads]
    chosen = arguments.engines.split(",")
    return [Contender(label, command) for label, command in commands.items() if label in chosen]


def main() -> None:
    """Measures and prints."""
    arguments = parse_arguments()
    # Beside the artifact, because links cannot leave its file system.
    with tempfile.TemporaryDirectory(dir=arguments.artifact.resolve().parent) as folder:
        contenders = contenders_of(arguments, Path(folder))
        bandwidth = bandwidth_meter(arguments.threads)
        load_average = [os.getloadavg()[0]]
        limits = run(contenders, arguments.rounds, bandwidth)
    load_average.append(os.getloadavg()[0])
    weight_bytes = bytes_per_token(arguments.artifact)
    fraction = max(contenders[0].decode) * weight_bytes / max(limits)
    results = {contender.label: contender.summary() for contender in contenders}
    compared = ratios(contenders)
    report(results, compared)
    percent = f"{100 * fraction:.0f} % of the limit"
    say(f"load average before and after: {load_average[0]:.1f}, {load_average[1]:.1f}")
    say(f"{contenders[0].label} reads {weight_bytes / MEGABYTE:.0f} MB a token: {percent}")
    finish(
        {
            "threads": arguments.threads,
            "load_average": load_average,
            "rounds": arguments.rounds,
            "engines": results,
            "ratios": compared,
            "bandwidth": {"best": max(limits), "median": statistics.median(limits), "low": min(limits)},
            "weight_bytes_per_token": weight_bytes,
            "bandwidth_fraction": fraction,
        }
    )


def report(results: dict[str, dict[str, Any]], compared: dict[str, Any]) -> None:
    """Prints the tables for people."""
    say(
        "median (best)   prefill 128       prefill 512       decode tok/s     start s  resident (anon.), peak"
    )
    for label, result in results.items():
        rates = "  ".join(
            f"{result[what]:6.1f} ({result[f'best_{what}']:6.1f})"
            for what in ("prefill_128", "prefill_512", "decode")
        )
        resident, anonymous = result["resident_bytes"] / MEGABYTE, result["anonymous_bytes"] / MEGABYTE
        peak = result["peak_bytes"] / MEGABYTE
        memory = f"{resident:4.0f} ({anonymous:.0f}), {peak:.0f} MB"
        say(f"{label:13} {rates}  {result['start_seconds']:6.2f}  {memory}")
    for label, ratio in compared.items():
        for what, part in ratio.items():
            say(f"ours / {label}, {what}: {part['median']:.3f} ({part['low']:.3f} to {part['high']:.3f})")


if __name__ == "__main__":
    main()
