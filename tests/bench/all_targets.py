"""What building for all targets at once saves, against one build for each target.

    python tests/bench/all_targets.py                         # the embedded model
    python tests/bench/all_targets.py model-q4_k_m.gguf       # and models of yours

Each build is a child process with the interpreter that runs this script. A round is one `qtool build --target
all` and then one `qtool build` for each of the same targets; printed are the quotients of the one run over
the sum of the others, in wall time and in processor time: median, lowest and highest of the rounds. Every
file of the one run must have the bytes that the separate build gives it; otherwise the script fails. The
model is read once before, so that all builds find it in the page cache.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from build import digests, read_through
from measure import MEGABYTE, Child, argument_parser, finish, paired_ratio, run_child, say

import qtool_targets


def build(model: str | None, target: str, output: Path, recipe: str) -> Child:
    """Runs one qtool build."""
    source = [] if model is None else [model]
    options = ["--target", target, "-o", output, "--recipe", recipe, "--no-cache", "--json"]
    return run_child([sys.executable, "-m", "qtool", "build", *source, *options])


def differing_files(target: str, one: Path, other: Path) -> list[str]:
    """Returns the files of one target that are not the same in both builds."""
    together, apart = digests(one), digests(other)
    files = sorted(together.keys() | apart.keys())
    return [f"{target}/{file}" for file in files if together.get(file) != apart.get(file)]


def run_round(
    model: str | None, targets: tuple[str, ...], recipe: str
) -> tuple[Child, list[Child], list[str]]:
    """Builds for all targets at once and one by one; also returns the files that differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        together = build(model, "all", folder / "all", recipe)
        reports = {report["target"]: report for report in json.loads(together.stdout)}
        apart, different = [], []
        for target in targets:  # a recipe that changes nothing for a target was left out there
            apart.append(build(model, target, folder / "separate", reports[target]["recipe"]))
            different += differing_files(target, Path(reports[target]["path"]), folder / "separate")
            shutil.rmtree(folder / "separate")  # one artifact in float32 is gigabytes
        return together, apart, different


def measure(model: str | None, rounds: int, recipe: str) -> dict[str, Any]:
    """Measures one model."""
    targets = qtool_targets.names()
    together: list[Child] = []
    apart: list[list[Child]] = []
    different: set[str] = set()
    for number in range(rounds):
        one, many, files = run_round(model, tuple(targets), recipe)
        together.append(one)
        apart.append(many)
        different.update(files)
        say(f"round {number + 1}: {one.seconds:.1f} s for {sum(child.seconds for child in many):.1f} s")
    result: dict[str, Any] = {
        "model": "nano" if model is None else Path(model).name,
        "targets": len(targets),
        "rounds": rounds,
        "recipe": recipe,
        "peak_bytes": max(child.peak_bytes for child in together),
        "separate_peak_bytes": max(child.peak_bytes for children in apart for child in children),
        "differing_files": sorted(different),
    }
    for what in ("seconds", "cpu_seconds"):
        one_run = [getattr(child, what) for child in together]
        summed = [sum(getattr(child, what) for child in children) for children in apart]
        result |= {what: one_run, f"separate_{what}": summed, f"{what}_ratio": paired_ratio(one_run, summed)}
    return result


def report(result: dict[str, Any]) -> None:
    """Prints the figures of one model for people."""
    wall, cpu = (result[f"{what}_ratio"] for what in ("seconds", "cpu_seconds"))
    say(
        f"{result['model']}, {result['targets']} targets: one run takes {wall['median']:.0%} of the time of"
        f" separate builds ({wall['low']:.0%} to {wall['high']:.0%}), {cpu['median']:.0%} of processor time"
    )
    peak, apart = result["peak_bytes"] / MEGABYTE, result["separate_peak_bytes"] / MEGABYTE
    say(f"    peak memory {peak:.0f} MB, of the largest separate build {apart:.0f} MB")
    different = result["differing_files"]
    say(f"    files that differ: {', '.join(different)}" if different else "    equal in every byte")


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "models", nargs="*", help="what qtool build takes; the embedded one is always measured"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", default="fast")
    arguments = parser.parse_args()
    results = []
    for model in (None, *arguments.models):
        if model is not None and Path(model).exists():
            read_through(Path(model))
        results.append(measure(model, arguments.rounds, arguments.recipe))
        report(results[-1])
    finish({"models": results})
    if any(result["differing_files"] for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
