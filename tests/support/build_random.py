"""A program: compiles a configuration with random weights, loads what comes, and prints what it took.

    python -m support.build_random FOLDER --target x64-int4 --output FOLDER

With the folder `tests` in PYTHONPATH. FOLDER holds a config.json. The last line is JSON: planned and real
bytes, seconds and peak memory (Linux) of the build, and whether the logits of a few tokens are numbers.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np

from qtool.jobs import Job, threads_or_all
from qtool.pipeline import run_jobs
from qtool.plan import make_plan
from qtool.quantize.formats import formats_for
from qtool_targets import load
from support.random_weights import random_checkpoint
from support.raw_session import RawSession


def peak_bytes() -> int:
    """Returns the largest resident set of this process so far."""
    # Not getrusage: after exec, its maximum still counts the parent's memory.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def build(folder: Path, target_name: str, output: Path) -> dict[str, float]:
    """Compiles, and returns what it took."""
    checkpoint, target = random_checkpoint(folder), load(target_name)
    context = min(target.memory.context, checkpoint.config.max_position_embeddings)
    threads = threads_or_all(None)
    formats = formats_for(checkpoint.config, target)
    plan = make_plan(checkpoint.config, target, context, checkpoint.tokenizer_bytes, threads, formats=formats)
    job = Job(checkpoint, target, context, "native", output, plan, formats)
    started = time.perf_counter()
    (artifact,) = run_jobs([job], ignore_budget=True)
    return {
        "planned_bytes": plan.artifact,
        "bytes": artifact.size,
        "planned_build_memory": plan.build_memory,
        "seconds": time.perf_counter() - started,
        "peak_bytes": peak_bytes(),
    }


def main() -> None:
    """Reads the command line, builds, runs and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="x64-int4")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    result = build(arguments.folder, arguments.target, arguments.output)
    logits = RawSession(arguments.output).forward([1, 2, 3, 4], rows=4)
    right = bool(np.isfinite(logits).all() and np.ptp(logits, axis=-1).min() > 0)
    print(json.dumps(result | {"right_logits": right}))


if __name__ == "__main__":
    main()
