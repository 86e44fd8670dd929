"""A real checkpoint, end to end: built in little memory, as large as planned, and it writes code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qtool_runtime
from qtool.artifact.verify import verify
from support.genai import greedy
from support.places import real_model

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc"),
]

BUILD = r"""
import json, re, sys
from pathlib import Path
from qtool.jobs import plan_jobs
from qtool.pipeline import run_jobs
jobs = plan_jobs(sys.argv[1], ["x64-int4", "x64-int8"], output=sys.argv[2], threads=2)
artifacts = run_jobs(jobs, threads=2)
# Not getrusage: after exec, its maximum still counts the parent's memory.
peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({
    "peak": peak,
    "paths": [str(artifact.path) for artifact in artifacts],
    "planned": [job.plan.artifact for job in jobs],
    "sizes": [artifact.size for artifact in artifacts],
    "planned_build_memory": [job.plan.build_memory for job in jobs],
}))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Two artifacts of one pass, built in a process of their own, and what that took."""
    model = real_model("qwen2.5-coder-0.5b")
    if model is None:
        pytest.skip("no real checkpoint (QTOOL_REAL_MODELS)")
    folder = tmp_path_factory.mktemp("real")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(model), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)
    for path in sorted(folder.rglob("*"), reverse=True):  # a gigabyte that nobody needs any more
        path.rmdir() if path.is_dir() else path.unlink()


def test_the_build_takes_at_most_600_mb(built: dict[str, Any]) -> None:
    assert built["peak"] < 600e6
    print(f"\npeak of the build: {built['peak'] / 1e6:.0f} MB")


def test_the_size_is_within_two_percent_of_the_plan(built: dict[str, Any]) -> None:
    assert built["planned"] == pytest.approx(built["sizes"], rel=0.02)


both = pytest.mark.parametrize("index", [0, 1], ids=["x64-int4", "x64-int8"])


@both
def test_the_artifact_verifies_and_answers_a_question_about_python(built: dict[str, Any], index: int) -> None:
    path = Path(built["paths"][index])
    report = verify(path)
    assert report.problems == ()
    question = [{"role": "user", "content": "Write a Python function that adds two numbers."}]
    with qtool_runtime.load(path, context=512) as model:
        answer = model.chat(question, temperature=0, max_tokens=40).read()
        again = model.chat(question, temperature=0, max_tokens=10).read()
    assert "def " in answer
    assert answer.startswith(again)


@both
def test_genai_reads_and_writes_the_same_tokens(built: dict[str, Any], index: int) -> None:
    path = Path(built["paths"][index])
    prompt = "def fibonacci(n):\n    "
    with qtool_runtime.load(path, context=512) as model:
        tokens = list(model.tokenizer.encode(prompt))
        stream = model.generate(prompt, max_tokens=24)
        stream.read()
    assert greedy(path, prompt, 24) == (tokens, list(stream.token_ids))


@pytest.mark.parametrize("index", [0, 1])
def test_exact_drafts_change_no_bit(built: dict[str, Any], index: int) -> None:
    """ONNX Runtime's own kernels round otherwise for one row than for several."""
    code = "def price(items):\n    total = 0\n    for item in items:\n        total += item\n    return total"
    messages = [
        {"role": "user", "content": f"Print this code again with `total` renamed to `amount`:\n{code}"}
    ]
    options = {"temperature": 0, "repetition_penalty": 1.0, "max_tokens": 60, "logprobs": 0}
    with qtool_runtime.load(
        built["paths"][index], kernels="off", exact_drafts=True, prefix_memory=0
    ) as model:
        plain, drafted = (model.chat(messages, speculate=speculate, **options) for speculate in (False, True))
        assert plain.read() == drafted.read()
        assert plain.stats.logprobs == drafted.stats.logprobs
        assert drafted.stats.accepted_tokens > 0
