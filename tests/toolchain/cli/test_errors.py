"""Whatever a user types: an exit code for each kind of error, a message, a hint, and never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qtool.errors
from qtool.cli import _COMMANDS
from qtool_runtime import manifest
from qtool_targets import TargetError
from support.fixtures import Artifacts, Checkpoints

from .conftest import Invoke

NAMES = [name for name in qtool.errors.__all__ if name not in ("QtoolError", "ContextLimitError")]
ERRORS = [*(getattr(qtool.errors, name) for name in NAMES), TargetError]


def test_every_class_of_errors_has_an_exit_code_of_its_own_and_it_is_documented() -> None:
    codes = {error.exit_code: error.__name__ for error in ERRORS}
    assert len(codes) == len(ERRORS)
    assert set(codes).isdisjoint({0, 1, 130})
    assert codes[2] == "OptionError", "as click says of other wrong usage"
    documented = " ".join((qtool.errors.__doc__ or "").split())
    for code in codes:
        assert f", {code} " in documented


@pytest.fixture
def places(tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts, tmp_path: Path) -> dict[str, Any]:
    """What the commands below name."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "bad.toml").write_text("name = ")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    other = tmp_path / "llama"
    shutil.copytree(tiny_checkpoint().folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    damaged = shutil.copytree(tiny_artifact("x64-int4"), tmp_path / "damaged")
    (damaged / "model.onnx").write_bytes(b"")
    future = shutil.copytree(tiny_artifact("x64-int4"), tmp_path / "future")
    document = manifest.read(future)
    graph = type(document.graph)(**{**vars(document.graph), "minimum_onnxruntime": "99.0"})
    changed = type(document)(**{**vars(document), "graph": graph})
    (future / "manifest.json").write_text(changed.to_json(), "utf-8")
    return {
        "SOURCE": tiny_checkpoint().folder,
        "ARTIFACT": tiny_artifact("x64-int4"),
        "CUDA": tiny_artifact("cuda-int4"),
        "OUT": tmp_path / "out",
        "TMP": tmp_path,
    }


CASES = [
    (3, "build TMP/empty -t x64-int4", "is empty"),
    (3, "build TMP/none -t x64-int4", "there is no file or folder"),
    (3, "build TMP/text.txt -t x64-int4", "is not a model"),
    (3, "build TMP/cut.gguf -t x64-int4", "cut.gguf"),
    (3, "build ./none -t x64-int4 --plan", "there is no file or folder"),
    (4, "build TMP/llama -t x64-int4", "model_type"),
    (5, "build SOURCE -t nothing", "unknown target 'nothing'"),
    (5, "build SOURCE -t TMP/bad.toml", "is not valid TOML"),
    (5, "build SOURCE -t TMP/none.toml", "there is no target file"),
    (5, "build SOURCE -t x64-int4 --context 100000", "the context 100000 is not between 1 and 256"),
    (7, "inspect TMP/empty", "is not an artifact"),
    (7, "inspect TMP/text.txt", "is not an artifact"),
    (7, "inspect SOURCE", "is not an artifact"),
    (7, "verify TMP/none", "is not an artifact"),
    (7, "verify TMP/damaged", "model.onnx has 0 bytes"),
    (7, "run TMP/damaged hello", "model.onnx has 0 bytes"),
    (7, "chat TMP/empty", "is not an artifact"),
    (8, "run TMP/future hello", "the artifact needs 99.0 or later"),
    (7, "verify TMP/future", "the artifact needs 99.0 or later"),
    (9, "run ARTIFACT hello --top-p 0", "top_p"),
    (7, "bench TMP/empty", "is not an artifact"),
    (7, "bench TMP/damaged", "model.onnx has 0 bytes"),
    (8, "bench TMP/future", "the artifact needs 99.0 or later"),
    (8, "bench ARTIFACT --provider abacus", "the provider 'abacus' is unknown"),
    (9, "bench ARTIFACT --tokens 5000", "has no room for a prompt and 5000 tokens more"),
    (9, "bench ARTIFACT --threads 5000", "threads is 5000; valid"),
    (3, "bench ARTIFACT --peers --gguf TMP/text.txt", "is not a model"),
    (3, "bench ARTIFACT --peers --gguf TMP/none", "there is no file"),
    (3, "bench ARTIFACT --peers --checkpoint TMP/empty", "is empty"),
    (4, "bench ARTIFACT --peers --checkpoint TMP/llama", "model_type"),
    (3, "bench ARTIFACT --peer llama.cpp", "llama.cpp needs the same model"),
    (11, "build SOURCE -t x64-int4 -o TMP/empty", "exists already"),
    (11, "build SOURCE -t x64-int4 -o TMP/text.txt", "exists already"),
    (11, "build SOURCE -t x64-int4 -o SOURCE --force", "is not an artifact, so --force does not replace it"),
    (11, "build SOURCE -t x64-int4 -o TMP/text.txt/out", "cannot write"),
    (11, "build SOURCE -t x64-int4 -o /proc/none/out", "cannot write"),
]


@pytest.mark.parametrize(("code", "command", "message"), CASES, ids=[case[1] for case in CASES])
def test_an_error_has_its_exit_code_and_says_what_is_wrong(
    invoke: Invoke, places: dict[str, Any], code: int, command: str, message: str
) -> None:
    arguments = []
    for word in command.split():
        for name, place in places.items():
            word = word.replace(name, str(place)) if word.partition("/")[0] == name else word  # noqa: PLW2901
        arguments.append(word)
    result = invoke(*arguments)
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    assert not places["OUT"].exists()


def test_an_artifact_for_a_provider_that_is_not_there_says_how_to_run_it(
    invoke: Invoke, places: dict[str, Any]
) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    result = invoke("run", places["CUDA"], "hello")
    assert result.exit_code == 8
    assert "error: the artifact needs CUDAExecutionProvider" in result.stderr
    assert "hint: " in result.stderr
    # There is no silent fallback, but it can be asked for.
    assert invoke("run", places["CUDA"], "Hello", "-n", 2, "--provider", "cpu").exit_code == 0


@pytest.mark.parametrize(
    "command",
    [
        "frobnicate",
        "build",
        "build --target",
        "build a b -t x64-int4",
        "build -t x64-int4 --threads 0",
        "build -t x64-int4 --threads many",
        "build -t x64-int4 --context 0",
        "build -t x64-int4 --exporter tvm",
        "inspect",
        "inspect a b",
        "verify --deep x",
        "run",
        "run x",
        "chat",
        "targets a b",
        "bench",
        "bench x --rounds 0",
        "bench x --prompt 0",
        "bench x --peer vllm",
        "bench x --gguf model.gguf",
        "bench x --peers --peer-python vllm=python",
        "bench x --peers --peer-python llama.cpp",
        "bench x --peers --peer-python llama.cpp=no-such-python",
        "--frobnicate",
    ],
)
def test_wrong_usage_is_exit_2_and_says_what_is_wrong(invoke: Invoke, command: str) -> None:
    result = invoke(*command.split())
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert result.stdout == ""


def test_an_unknown_command_is_answered_with_the_known_ones(invoke: Invoke) -> None:
    assert f"No such command 'frobnicate'; known: {', '.join(_COMMANDS)}." in invoke("frobnicate").stderr


@pytest.mark.parametrize("command", ["", *_COMMANDS])
def test_help_is_on_stdout(invoke: Invoke, command: str) -> None:
    for option in ("-h", "--help"):
        result = invoke(*command.split(), option)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith("Usage: ")


def test_version(invoke: Invoke) -> None:
    from importlib.metadata import version

    assert invoke("--version").stdout == f"qtool, version {version('qtool-edge')}\n"


class TestMissingExtras:
    @pytest.mark.parametrize(
        ("command", "module", "extra"),
        [
            ("build SOURCE -t x64-int4 -o OUT", "onnx_ir", "build"),
            ("run ARTIFACT hello", "onnxruntime", "cpu"),
        ],
    )
    def test_say_which_to_install(
        self,
        invoke: Invoke,
        places: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
        command: str,
        module: str,
        extra: str,
    ) -> None:
        import sys

        for name in [name for name in sys.modules if name.partition(".")[0] in (module, "qtool")]:
            if name.partition(".")[0] == module or name.startswith(
                ("qtool.models", "qtool.exp", "qtool.art")
            ):
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
        result = invoke(*(str(places.get(word, word)) for word in command.split()))
        assert result.exit_code == 10, result.stderr
        assert module in result.stderr
        assert f"qtool-edge[{extra}]" in result.stderr


# Arguments that nobody would type, and some that somebody will. No "/" in texts of chance: "a/b" is a hub id.
texts = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=12)
values = st.one_of(
    texts,
    st.integers().map(str),
    st.sampled_from(["", ".", "..", "/", "~", "-", "--", "é", "a" * 5000, "nul", "\u202e", "*", "[a"]),
    st.sampled_from(["SOURCE", "ARTIFACT", "TMP", "FILE", "x64-int4", "all", "cuda-int4"]),
)
OPTIONS = [
    "--target", "-t", "--output", "-o", "--context", "--exporter", "--plan", "--json", "--threads", "--raw",
    "--system", "--stats", "--max-tokens", "-n", "--temperature", "--top-k", "--top-p", "--seed", "--stop",
    "--provider", "--thinking", "--no-thinking", "--help", "--version", "--nonsense",
]  # fmt: skip
words = st.one_of(values, st.sampled_from(OPTIONS))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(command=st.sampled_from([*_COMMANDS, "nonsense", ""]), rest=st.lists(words, max_size=5), piped=texts)
def test_no_arguments_end_in_a_traceback(
    invoke: Invoke,
    tiny_checkpoint: Checkpoints,
    tiny_artifact: Artifacts,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    rest: list[str],
    piped: str,
) -> None:
    folder = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(folder)
    (folder / "file").write_text("x")
    known: dict[str, Callable[[], object]] = {
        "SOURCE": lambda: tiny_checkpoint().folder,
        "ARTIFACT": lambda: tiny_artifact("x64-int4"),
        "TMP": lambda: folder,
        "FILE": lambda: folder / "file",
    }
    arguments = [str(known[word]()) if word in known else word for word in [command, *rest]]
    result = invoke(*arguments, input=piped)
    assert result.exit_code in (0, 2, 3, 4, 5, 6, 7, 8, 9, 11)
    if result.exit_code != 0:
        assert result.stderr.strip()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
