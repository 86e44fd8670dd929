"""The command as a process: entry points, streams, terminals and pipes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.fixtures import Artifacts, Checkpoints
from support.sparse import write_sparse_checkpoint

ESCAPE = re.compile(r"\x1b\[")


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "qtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)  # type: ignore[call-overload]


def in_terminal(*arguments: object, **environment: str) -> str:
    """Runs the command with a terminal on all three streams; returns what it shows."""
    script = "import os, pty, sys; code = pty.spawn([sys.executable, '-m', 'qtool', *sys.argv[1:]]);"
    script += "sys.exit(os.waitstatus_to_exitcode(code))"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | environment
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True
    )
    return done.stdout.decode()


def test_python_dash_m_is_the_command() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(b"qtool, version ")


def test_help_is_quick_and_needs_no_extra() -> None:
    """It imports every command's module; what a command works with comes in when it is called."""
    script = (
        "import sys; from click.testing import CliRunner; from qtool.cli import cli;"
        " assert CliRunner().invoke(cli, ['--help']).exit_code == 0; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "gguf", "huggingface_hub", "rich", "tokenizers"}
    assert not heavy & set(done.stdout.split())


def test_results_are_on_stdout_and_progress_on_stderr(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    done = run("build", tiny_checkpoint().folder, "-t", "x64-int4", "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(tmp_path / "out")
    assert b"export" in done.stderr
    assert not ESCAPE.search(done.stderr.decode())


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
def test_a_terminal_gets_a_bar_and_no_color_is_respected(tmp_path: Path) -> None:
    source = write_sparse_checkpoint(tmp_path / "source", vocab_size=600_000)  # long enough to be seen
    command = ["build", source, "-t", "x64-int4", "-o", tmp_path / "out", "--force"]
    colour = re.compile(r"\x1b\[[0-9;]*[1-9][0-9;]*m")  # any style but the reset
    shown = in_terminal(*command)
    assert "quantize" in shown
    assert "MB" in shown
    assert colour.search(shown)
    shown = in_terminal(*command, NO_COLOR="1")
    assert "quantize" in shown
    assert not colour.search(shown)


def test_a_reader_that_goes_away_is_no_traceback(tiny_artifact: Artifacts) -> None:
    command = [sys.executable, "-m", "qtool", "inspect", str(tiny_artifact("x64-int4")), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.stderr is not None
        assert b"Traceback" not in child.stderr.read()
        assert child.wait(30) != 0


def test_piped_bytes_that_are_not_utf_8_are_no_traceback(tiny_artifact: Artifacts) -> None:
    artifact = tiny_artifact("x64-int4", "qwen3")
    for command, piped in (("run", b"caf\xe9 \xff\xfe\n"), ("chat", b"caf\xe9\nhello\n")):
        done = run(command, artifact, *(["-"] if command == "run" else []), "-n", 3, input=piped)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr


def test_arguments_that_are_not_utf_8_are_errors(
    tiny_artifact: Artifacts, tiny_checkpoint: Checkpoints
) -> None:
    """Python gives such bytes of a command line as lone surrogates. Many commands, in one process."""
    artifact, source = str(tiny_artifact("x64-int4", "qwen3")), str(tiny_checkpoint().folder)
    odd = "caf\udce9"
    commands = [
        ["build", odd, "-t", "x64-int4"],
        ["build", source, "-t", odd],
        ["inspect", odd],
        ["verify", odd, "--json"],
        ["run", odd, "hello"],
        ["run", artifact, odd],
        ["run", artifact, "hello", "-n", "2", "--stop", odd],
        ["run", artifact, "hello", "--provider", odd],
        ["targets", odd],
        ["targets", odd, "--json"],
        ["build", source, "-t", "x64-int4", "--plan", "--output", odd],
        ["chat", artifact, "--system", odd],
    ]
    script = """
import json, sys
from qtool.cli import main
codes = []
for command in json.loads(sys.argv[1]):
    sys.argv = ["qtool", *command]
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps(codes))
"""
    command = [sys.executable, "-c", script, json.dumps(commands)]
    done = subprocess.run(command, input=b"hello\n", capture_output=True, timeout=60, check=False)
    assert b"Traceback" not in done.stderr, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes == [3, 5, 7, 7, 7, 9, 0, 8, 5, 5, 0, 9]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_terminal_that_cannot_show_a_character_does_not_end_the_program(
    tiny_artifact: Artifacts, tmp_path: Path, encoding: str
) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    name = tmp_path / "日本-é"
    done = run("inspect", name, env=environment)
    assert done.returncode == 7
    assert b"Traceback" not in done.stderr
    done = run("run", tiny_artifact("x64-int4", "qwen3"), "hello", "-n", 20, "--seed", 1, env=environment)
    assert done.returncode == 0, done.stderr
