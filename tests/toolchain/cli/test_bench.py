"""`qtool bench`."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from support.fixtures import Artifacts
from support.interpreters import failing

from .conftest import Invoke

GENAI = "onnxruntime-genai"
QUICK = ("--prompt", 8, "--depth", 0, "--tokens", 4, "--rounds", 1, "--threads", 1)


@pytest.fixture
def artifact(tiny_artifact: Artifacts) -> Path:
    return tiny_artifact("x64-int4", "qwen3")


def rows(text: str) -> list[list[str]]:
    return [re.split(r"  +", line) for line in text.splitlines()]


def test_prints_a_table_and_says_on_stderr_how_far_it_is(invoke: Invoke, artifact: Path) -> None:
    result = invoke("bench", artifact, "--kernels", "off", *QUICK)
    assert result.exit_code == 0, result.stderr
    lines = rows(result.stdout)
    assert lines[0] == [
        "tiny-qwen3 x64-int4 on cpu, kernels of onnxruntime, 1 thread; medians (lowest to highest) of 1 round"
    ]
    figures = {cells[0]: cells[1] for cells in lines if len(cells) == 2 and cells[0]}
    assert figures.keys() >= {
        "prompt of 8, tokens/s",
        "first token after 8, s",
        "decode at depth 0, tokens/s",
    }
    assert all(float(value.replace(",", "")) > 0 for value in figures.values())
    assert "% of the read bandwidth" in result.stdout
    assert "/ " not in result.stdout.split("read bandwidth")[0].replace("tokens/s", "")  # no ratios
    assert result.stderr.splitlines()[0] == "loading qtool"
    assert result.stderr.splitlines()[1].startswith("round 1 of 1: qtool ")


def test_kernels_that_are_not_there_are_refused_before_anything_is_loaded(
    invoke: Invoke, artifact: Path
) -> None:
    result = invoke("bench", artifact, *QUICK, "--kernels", "none")
    assert result.exit_code in (9, 10)  # none of that name, or no package of kernels
    assert result.stderr.startswith("error: ")


def test_defaults_are_clipped_to_the_context(invoke: Invoke, artifact: Path) -> None:
    report = json.loads(invoke("bench", artifact, "--rounds", 2, "--json").stdout)
    assert report["lengths"] == {"prompts": [128, 255], "depths": [0, 191], "tokens": 64, "turns": [16] * 4}
    assert report["rounds"] == 2
    assert report["engines"].keys() == {"qtool"}


def test_peers_are_beside_it_and_what_cannot_run_is_listed(invoke: Invoke, artifact: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")
    result = invoke("bench", artifact, *QUICK, "--peers")
    assert result.exit_code == 0, result.stderr
    lines = rows(result.stdout)
    assert [name.split()[0] for name in lines[2][1:]] == ["qtool", GENAI]
    ratios = lines.index(["qtool", f"/ {GENAI}"])
    assert [cells[0] for cells in lines[ratios + 1 : ratios + 3]] == ["prompt of 8", "decode at depth 0"]
    skipped = [line for line in result.stdout.splitlines() if line.startswith("skipped: ")]
    assert [line.split()[1] for line in skipped] == ["llama.cpp", "openvino-genai", "transformers"]


@pytest.mark.skipif(sys.platform == "win32", reason="a script is the interpreter")
@pytest.mark.parametrize("named", [False, True])
def test_a_peer_that_fails_says_why(invoke: Invoke, artifact: Path, tmp_path: Path, named: bool) -> None:
    python = f"{GENAI}={failing(tmp_path, 'load')}"
    choice = ("--peer", GENAI) if named else ("--peers",)
    result = invoke("bench", artifact, *QUICK, *choice, "--peer-python", python)
    assert result.exit_code == (12 if named else 0)
    said = result.stderr if named else result.stdout
    assert f"{GENAI}: its process ended with exit code 1:\nfirst line\nthe last words\n" in said


def test_a_graph_that_cannot_be_loaded_is_no_traceback(
    invoke: Invoke, artifact: Path, tmp_path: Path
) -> None:
    """Of the right size, which is all that is checked before loading."""
    damaged = shutil.copytree(artifact, tmp_path / "damaged")
    (damaged / "model.onnx").write_bytes(b"\xff" * (artifact / "model.onnx").stat().st_size)
    result = invoke("bench", damaged, *QUICK)
    assert result.exit_code == 12
    assert result.stderr.splitlines()[1].startswith("error: qtool: its process ended with exit code 1:")
    assert "model.onnx" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_engines_too(artifact: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "qtool", "bench", str(artifact), "--rounds", "1000", "--threads", "1"]
    # Where SIGINT is ignored, as in a background job of a shell, Python leaves it so.
    restore = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", restore, *command], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "round 1 of" not in process.stderr.readline():
            pass
        children: list[psutil.Process] = []
        while not children:  # between two rounds there is none
            children = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.01)
        process.send_signal(number)
        assert "Traceback" not in process.stderr.read()
        assert process.wait(30) == code
    assert not psutil.wait_procs(children, timeout=10)[1]
