"""Qwen2.5-Coder-1.5B end to end: compiled in little memory, loaded, and it writes code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qtool_runtime
from support.places import real_model

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc"),
]

BUILD = """
import json, sys, time
import qtool
from support.build_random import peak_bytes
started = time.perf_counter()
artifact = qtool.build(sys.argv[1], target="x64-int4", output=sys.argv[2])
print(json.dumps({
    "seconds": time.perf_counter() - started, "peak": peak_bytes(), "size": artifact.size,
}))
"""


def test_it_is_compiled_loaded_and_writes_code(tmp_path: Path) -> None:
    model = real_model("qwen2.5-coder-1.5b")
    if model is None:
        pytest.skip("no real checkpoint qwen2.5-coder-1.5b (QTOOL_REAL_MODELS)")
    folder = tmp_path / "artifact"
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(model), str(folder)],
        cwd=Path(__file__).parents[1],  # for `support`
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout.splitlines()[-1])
    started = time.perf_counter()
    with qtool_runtime.load(folder, context=512) as model:
        loaded = time.perf_counter() - started
        question = [{"role": "user", "content": "Write a Python function that checks if a number is prime."}]
        stream = model.chat(question, temperature=0, max_tokens=60)
        answer = stream.read()
    shutil.rmtree(folder)  # a gigabyte that nobody needs any more
    print(
        f"\nbuilt in {built['seconds']:.0f} s with a peak of {built['peak'] / 1e6:.0f} MB:"
        f" {built['size'] / 1e6:.0f} MB; loaded in {loaded:.1f} s;"
        f" {stream.stats.decode_rate:.1f} tokens/s\n{answer}"
    )
    assert "def is_prime(" in answer
    assert built["peak"] < 900e6
    assert built["size"] < 1100e6
