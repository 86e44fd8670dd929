"""The script that drives an engine: what it answers, and that any interpreter can run it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from qtool.bench.process import WORKER, started
from qtool.bench.worker import ENGINES
from qtool.errors import EngineError
from support.fixtures import Artifacts


def load(artifact: Path, **options: Any) -> dict[str, Any]:
    return {
        "model": str(artifact),
        "threads": 1,
        "capacity": 64,
        "provider": "cpu",
        "kernels": "auto",
    } | options


@pytest.mark.parametrize("engine", ENGINES)
def test_it_runs_where_nothing_is_installed(engine: str) -> None:
    """Without site-packages: neither qtool nor numpy can be imported."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(WORKER), engine],
        input='{"check": true}\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"installed": False, "version": None}
    assert done.stderr == ""


@pytest.mark.parametrize("engine", ["qtool", "onnxruntime-genai"])
def test_it_answers_requests(tiny_artifact: Artifacts, engine: str) -> None:
    if engine != "qtool":
        pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")
    with started(engine) as process:
        package = {"qtool": "qtool-edge"}.get(engine, engine)
        assert process.ask(check=True) == {"installed": True, "version": version(package)}
        loaded = process.ask(load=load(tiny_artifact("x64-int4", "qwen3")))
        assert loaded.keys() == {"import_seconds", "load_seconds", "kernels"}
        assert (loaded["kernels"] is None) == (engine != "qtool")
        for prompt in ([5, 6, 7], [1]):
            answers = [
                process.ask(prompt=prompt, tokens=30),
                process.ask(advance=10),
                process.ask(advance=20),
            ]
            assert all(0 < answer["seconds"] < 10 for answer in answers)
        memory = process.ask(memory=True)
        if sys.platform == "linux":
            assert 0 < memory["anonymous"] < memory["resident"] <= memory["peak"] < 1 << 30


def test_an_answer_is_exactly_as_long_as_announced(tiny_artifact: Artifacts) -> None:
    with pytest.raises(EngineError, match="the answer ended early: length"), started("qtool") as process:
        process.ask(load=load(tiny_artifact("x64-int4", "qwen3")))
        process.ask(prompt=[1, 2], tokens=5)
        process.ask(advance=5)
        process.ask(advance=1)


def test_its_last_words_are_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as error, started("qtool") as process:
        process.ask(load=load(tmp_path))
    first, *lines = error.value.message.splitlines()
    assert first == "qtool: its process ended with exit code 1:"
    assert "is not an artifact" in lines[-1]
    assert "Traceback" not in error.value.message


def test_a_signal_is_named() -> None:
    with pytest.raises(EngineError, match="was ended by signal 9"), started("qtool") as process:
        process.ask(check=True)
        process._process.kill()
        process.ask(check=True)


def test_modules_beside_the_script_hide_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script's folder does by default."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.read_text())
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.setattr("qtool.bench.process.WORKER", script)
    with started("qtool") as process:
        assert process.ask(check=True)["installed"]
