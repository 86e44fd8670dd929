"""What the cache of builds costs and saves.

    python tests/bench/cache.py model-q4_k_m.gguf --target x64-int4

Three builds of one artifact in turn, `--rounds` times, each a child process: without the cache, with it while
it is empty, and with it once more. Printed are the quotients of the second and the third over the first, in
wall time and in processor time, and what parts of the third take by themselves: the SHA-256 of the source and
of the artifact.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from build import read_through
from measure import Child, argument_parser, finish, paired_ratio, run_child, say

from qtool_runtime.integrity import sha256_of


def build(model: str, target: str, output: Path, cache: Path | None) -> Child:
    """Runs one qtool build, with the cache in a folder or without it."""
    options = ["--target", target, "-o", output, "--no-cache" if cache is None else "--cache"]
    command = [sys.executable, "-m", "qtool", "build", model, *options]
    return run_child(command, {"QTOOL_CACHE_DIR": str(cache)})


def hash_seconds(path: Path) -> float:
    """Returns how long the SHA-256 of a file, or of the files of a folder, takes."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    started = time.perf_counter()
    for file in files:
        sha256_of(file)
    return time.perf_counter() - started


def measure(model: str, target: str, rounds: int) -> dict[str, Any]:
    """Measures one model."""
    children: dict[str, list[Child]] = {"without": [], "empty": [], "again": []}
    source, artifact = [], []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            cache = folder / "cache"
            children["without"].append(build(model, target, folder / "without", None))
            children["empty"].append(build(model, target, folder / "empty", cache))
            children["again"].append(build(model, target, folder / "again", cache))
            source.append(hash_seconds(Path(model)))
            artifact.append(hash_seconds(folder / "again"))
        times = ", ".join(f"{what} {found[-1].seconds:.1f} s" for what, found in children.items())
        say(f"round {number + 1}: {times}")
    result: dict[str, Any] = {
        "model": Path(model).name,
        "target": target,
        "source_hash_seconds": source,
        "artifact_hash_seconds": artifact,
    }
    for what in ("seconds", "cpu_seconds"):
        values = {name: [getattr(child, what) for child in found] for name, found in children.items()}
        result |= {f"{name}_{what}": found for name, found in values.items()}
        for name in ("empty", "again"):
            result[f"{name}_{what}_ratio"] = paired_ratio(values[name], values["without"])
    return result


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argument_parser(__doc__)
    parser.add_argument("model", help="a file or folder that qtool build takes")
    parser.add_argument("--target", default="x64-int4")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    read_through(Path(arguments.model))
    result = measure(arguments.model, arguments.target, arguments.rounds)
    for name, words in (("empty", "filling the cache"), ("again", "from the cache")):
        wall, cpu = (result[f"{name}_{what}_ratio"]["median"] for what in ("seconds", "cpu_seconds"))
        say(f"{words}: {wall:.0%} of the time of a build without it, {cpu:.0%} of the processor time")
    source, artifact = min(result["source_hash_seconds"]), min(result["artifact_hash_seconds"])
    say(f"SHA-256 of the source {source:.2f} s, of the artifact {artifact:.2f} s")
    finish(result)


if __name__ == "__main__":
    main()
