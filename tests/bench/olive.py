"""Olive's GPTQ beside qtool's: quality, time, memory and size of builds that differ in their recipe only.

    python tests/bench/olive.py                       # the model that ships with qtool
    python tests/bench/olive.py model-q4_k_m.gguf --recipes balanced olive olive-mixed

Run it with an interpreter that has the extra `olive`. Every recipe reads the same text, has the same target
and starts from the same float32 weights. Builds run one after the other, each in a process of its own;
processor time is the steadier figure on a machine that is shared. Memory is the largest resident set of any
process of a build. Quality is `qtool eval`'s, on a text that no recipe has read.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import MEGABYTE, Child, argument_parser, finish, folder_bytes, run_child, say

QTOOL = (sys.executable, "-m", "qtool")


def build(model: list[str], target: str, recipe: str, output: Path, threads: int) -> Child:
    """Runs one build."""
    options = ["--target", target, "--recipe", recipe, "--threads", str(threads), "-o", output]
    return run_child([*QTOOL, "build", *model, *options])


def evaluate(
    model: list[str], artifacts: list[Path], tokens: int, text: Path | None
) -> dict[str, dict[str, Any]]:
    """Compares artifacts with the model; returns the report of each by its folder's name."""
    options = ["--tokens", str(tokens), "--json"]
    options += ["--against", *model] if model else []
    options += ["--text", str(text)] if text else []
    child = run_child([*QTOOL, "eval", *artifacts, *options])
    document = json.loads(child.stdout)
    return {artifact["name"]: artifact for artifact in document["artifacts"]}


def main() -> None:
    """Reads the command line, builds and compares."""
    parser = argument_parser(__doc__)
    parser.add_argument("model", nargs="*", help="anything that qtool build takes; none: the embedded model")
    parser.add_argument("--target", default="x64-int4")
    parser.add_argument("--recipes", nargs="+", default=["fast", "balanced", "olive", "olive-mixed"])
    parser.add_argument("--tokens", type=int, default=4096, help="predictions to compare")
    parser.add_argument("--text", type=Path, help="what both read; qtool's own text when absent")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / recipe for recipe in arguments.recipes]
        for recipe, folder in zip(arguments.recipes, folders, strict=True):
            child = build(arguments.model, arguments.target, recipe, folder, arguments.threads)
            results[recipe] = {
                "seconds": child.seconds,
                "cpu_seconds": child.cpu_seconds,
                "peak_bytes": child.peak_bytes,
                "bytes": folder_bytes(folder),
            }
            say(f"{recipe}: built in {child.seconds:.0f} s, {child.cpu_seconds:.0f} s of processor time")
        reports = evaluate(arguments.model, folders, arguments.tokens, arguments.text)
        for recipe, report in reports.items():
            found = results[recipe]
            found |= {key: report[key] for key in ("top1_agreement", "perplexity")}
            found |= {"kl": report["kl"]["mean"], "kl_standard_error": report["kl"]["standard_error"]}
            say(
                f"{recipe:<12} {found['bytes'] / MEGABYTE:7.1f} MB  KL {found['kl']:.4f}"
                f" ± {found['kl_standard_error']:.4f}  top-1 {found['top1_agreement']:.1%}"
                f"  {found['cpu_seconds']:6.0f} s CPU  peak {found['peak_bytes'] / MEGABYTE:6.0f} MB"
            )
    finish({"model": arguments.model, "target": arguments.target, "recipes": results})


if __name__ == "__main__":
    main()
