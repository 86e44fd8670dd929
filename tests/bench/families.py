"""Compiles every configuration of a folder with random weights at its true shapes, or says why it is refused.

    python tests/bench/families.py CONFIGS [--target x64-int4] [--only Qwen3-4B]

CONFIGS holds a folder with a config.json for each model. One model is compiled at a time, in a process of
its own, into a temporary folder (--scratch), loaded, asked for the logits of four tokens, and deleted.
Weights are made row by row (tests/support/random_weights.py): nothing of a model's size is kept but the
artifact.

Memory is the largest resident set of the building process, up to the end of the build. The script fails if a
build takes more than --most-memory (1,500 MB), or if the logits are not numbers.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import MEGABYTE, argument_parser, finish, run_child, say

from qtool.errors import UnsupportedModelError
from qtool.jobs import plan_jobs


def compile_one(folder: Path, target: str, scratch: Path) -> dict[str, Any]:
    """Plans one model, and compiles it if it is of a kind that is implemented."""
    try:
        (job,) = plan_jobs(folder, [target], plan_only=True)
    except UnsupportedModelError as error:
        say(f"{folder.name}: refused: {error.message}")
        return {"model": folder.name, "refused": error.message}
    free = shutil.disk_usage(scratch).free
    if free < 2 * job.plan.artifact:
        raise SystemExit(
            f"{folder.name} needs {2 * job.plan.artifact / 1e9:.1f} GB; {scratch} has {free / 1e9:.1f} GB"
        )
    tests = str(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        command = [sys.executable, "-m", "support.build_random", folder]
        options = ["--target", target, "--output", Path(name) / "artifact"]
        result = run_child([*command, *options], {**os.environ, "PYTHONPATH": tests}).result
    peak, planned = (result[key] / MEGABYTE for key in ("peak_bytes", "planned_build_memory"))
    size = result["bytes"] / MEGABYTE
    say(
        f"{folder.name}: {result['seconds']:.0f} s, peak {peak:.0f} MB (planned {planned:.0f}), {size:.0f} MB"
    )
    return {"model": folder.name} | result


def main() -> None:
    """Reads the command line, compiles and prints."""
    parser = argument_parser(__doc__)
    parser.add_argument("configs", type=Path, help="folder of folders with a config.json")
    parser.add_argument("--target", default="x64-int4")
    parser.add_argument("--only", action="append", help="a model's folder; may be given several times")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--most-memory", type=float, default=1500, help="MB that a build may take")
    arguments = parser.parse_args()
    folders = sorted(path for path in arguments.configs.iterdir() if (path / "config.json").is_file())
    chosen = [path for path in folders if not arguments.only or path.name in arguments.only]
    results = [compile_one(folder, arguments.target, arguments.scratch) for folder in chosen]
    built = [result for result in results if "bytes" in result]
    wrong = [
        result["model"]
        for result in built
        if result["peak_bytes"] > arguments.most_memory * MEGABYTE or not result["right_logits"]
    ]
    say(f"{len(built)} compiled, {len(results) - len(built)} refused, {len(wrong)} wrong {wrong or ''}")
    finish({"models": results, "target": arguments.target, "wrong": wrong})
    if wrong or not built:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
