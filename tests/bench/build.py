"""Time, peak memory and size of `qtool build`, and whether it gives the same bytes each time.

    python tests/bench/build.py model-q4_k_m.gguf --target x64-int4
    python tests/bench/build.py model-q4_k_m.gguf --peer-python PYTHON --peer-model FOLDER

Each build is a child process with the interpreter that runs this script, `--rounds` times; seconds are the
median, memory is the largest resident set (see `measure.run_child`). The file is read once before, so that
all rounds find it in the page cache.

Two more builds of the first model, into folders of other names and with 1 and 2 threads, must agree in every
byte of every file.

The peer is the onnxruntime-genai builder (`python -m onnxruntime_genai.models.builder`, int4, group 32,
symmetric, which is its default) over a Hugging Face folder of the same weights, which dequantize.py writes.
Its interpreter needs onnxruntime-genai, onnx-ir, torch and transformers 5. Rounds alternate between the two.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import MEGABYTE, Child, argument_parser, finish, folder_bytes, paired_ratio, run_child, say


def build(model: str, target: str, output: Path, threads: int | None = None) -> Child:
    """Runs one qtool build."""
    options = ["--target", target, "-o", output, "--no-cache"]
    if threads is not None:
        options += ["--threads", str(threads)]
    return run_child([sys.executable, "-m", "qtool", "build", model, *options])


def build_with_peer(python: str, model: Path, folder: Path) -> Child:
    """Runs one build of the onnxruntime-genai builder, with its defaults for int4 on a CPU."""
    places = ["-i", str(model), "-o", str(folder / "artifact"), "-c", str(folder / "cache")]
    options = ["-p", "int4", "-e", "cpu", "--extra_options", "block_size=32"]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    return run_child([python, "-m", "onnxruntime_genai.models.builder", *places, *options], offline)


def digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of a folder."""
    result = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            result[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return result


def differing_files(model: str, target: str, folder: Path) -> list[str]:
    """Builds twice, as differently as possible, and returns the files that are not the same in both."""
    one, two = folder / "one", folder / "elsewhere" / "another-name"
    two.parent.mkdir()
    build(model, target, one, threads=1)
    build(model, target, two, threads=2)
    first, second = digests(one), digests(two)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def read_through(path: Path) -> None:
    """Brings a file, or the files of a folder, into the page cache."""
    for file in [path] if path.is_file() else path.iterdir():
        with file.open("rb") as stream:
            while stream.read(1 << 20):
                pass


def measure(model: str, target: str, rounds: int, peer: tuple[str, Path] | None) -> dict[str, Any]:
    """Measures the builds of one model."""
    ours: list[Child] = []
    theirs: list[Child] = []
    result: dict[str, Any] = {"model": Path(model).name, "target": target}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ours.append(build(model, target, folder / "ours"))
            result["bytes"] = folder_bytes(folder / "ours")
            result["weight_bytes"] = folder_bytes(folder / "ours", "*.onnx*")
            say(f"{result['model']} round {number + 1}: {describe(ours[-1])}")
            if peer is not None:
                theirs.append(build_with_peer(*peer, folder))
                result["peer_bytes"] = folder_bytes(folder / "artifact")
                result["peer_weight_bytes"] = folder_bytes(folder / "artifact", "*.onnx*")
                say(f"peer round {number + 1}: {describe(theirs[-1])}")
    result |= summary(ours, "")
    if theirs:
        result |= summary(theirs, "peer_")
        for what in ("seconds", "cpu_seconds"):
            result[f"{what}_ratio"] = paired_ratio(
                [getattr(child, what) for child in theirs], [getattr(child, what) for child in ours]
            )
        result["peak_ratio"] = result["peer_peak_bytes"] / result["peak_bytes"]
    return result


def summary(children: list[Child], prefix: str) -> dict[str, float]:
    """Returns the medians of the times and the largest peak."""
    return {
        f"{prefix}seconds": statistics.median(child.seconds for child in children),
        f"{prefix}cpu_seconds": statistics.median(child.cpu_seconds for child in children),
        f"{prefix}peak_bytes": max(child.peak_bytes for child in children),
    }


def describe(child: Child) -> str:
    """Returns time and memory for people."""
    peak = child.peak_bytes / MEGABYTE
    return f"{child.seconds:.1f} s ({child.cpu_seconds:.1f} s of processor time), peak {peak:.0f} MB"


def report(result: dict[str, Any]) -> None:
    """Prints the figures of one model for people."""

    def line(name: str, prefix: str, compared: str = "") -> None:
        size, weights = result[f"{prefix}bytes"] / MEGABYTE, result[f"{prefix}weight_bytes"] / MEGABYTE
        seconds, cpu = result[f"{prefix}seconds"], result[f"{prefix}cpu_seconds"]
        peak = result[f"{prefix}peak_bytes"] / MEGABYTE
        say(f"{name}: median {seconds:.1f} s ({cpu:.1f} s of processor time), peak {peak:.0f} MB{compared}")
        say(f"    artifact {size:.1f} MB, of which graph and weights {weights:.1f} MB")

    line(result["model"], "")
    if "seconds_ratio" in result:
        wall, cpu = result["seconds_ratio"]["median"], result["cpu_seconds_ratio"]["median"]
        memory = result["peak_ratio"]
        line("peer", "peer_", f": {wall:.1f} ({cpu:.1f}) times as long, {memory:.1f} times the memory")


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argument_parser(__doc__)
    parser.add_argument("models", nargs="+", help="what qtool build takes")
    parser.add_argument("--target", default="x64-int4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python", help="interpreter with onnxruntime-genai, torch and transformers 5")
    parser.add_argument("--peer-model", type=Path, help="the first model as a Hugging Face folder of floats")
    arguments = parser.parse_args()
    peer = (
        (arguments.peer_python, arguments.peer_model)
        if arguments.peer_python and arguments.peer_model
        else None
    )
    results = []
    for index, model in enumerate(arguments.models):
        if Path(model).exists():
            read_through(Path(model))
        results.append(measure(model, arguments.target, arguments.rounds, None if index else peer))
    with tempfile.TemporaryDirectory() as name:
        different = differing_files(arguments.models[0], arguments.target, Path(name))
    for result in results:
        report(result)
    say(
        f"two builds differ in: {', '.join(different)}" if different else "two builds are equal in every byte"
    )
    finish({"builds": results, "byte_identical": not different, "differing_files": different})
    if different:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
