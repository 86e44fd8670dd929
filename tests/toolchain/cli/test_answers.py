"""What `qtool run` and `qtool chat` print: answers on stdout, reasoning beside them; and what options do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import qtool
from qtool.cli import cli
from qtool.nano import model_path
from support.tiny import write_tiny_checkpoint

OPENING = (
    "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>\n"
)

SAMPLED = ("--ignore-eos", "-n", 30, "--temperature", 1, "--seed", 3)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose template opens the reasoning, so that it always thinks."""
    folder = tmp_path_factory.mktemp("thinker")
    checkpoint = write_tiny_checkpoint(folder / "checkpoint", architecture="qwen3").folder
    config = json.loads((checkpoint / "tokenizer_config.json").read_text("utf-8"))
    config.pop("chat_template", None)
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (checkpoint / "chat_template.jinja").write_text(OPENING, "utf-8")
    return qtool.build(checkpoint, target="x64-fp32", output=folder / "artifact", context=200).path


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (model_path() / "config.json").is_file():
        pytest.skip(f"the embedded model is not in {model_path()}")
    return qtool.build(target="x64-int4", output=tmp_path_factory.mktemp("nano") / "artifact").path


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin, prog_name="qtool")


def report(artifact: Path, *options: object) -> dict:
    result = run("run", artifact, "Hello", "--json", *SAMPLED, *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_reasoning_goes_to_stderr_and_the_answer_to_stdout(thinker: Path) -> None:
    expected = report(thinker, "--thinking-budget", 5)
    result = run("run", thinker, "Hello", *SAMPLED, "--thinking-budget", 5)
    assert result.stdout.rstrip("\n") == expected["text"].rstrip("\n")
    assert expected["text"].strip()
    assert result.stderr == f"<think>\n{expected['reasoning']}\n</think>\n"
    assert report(thinker)["text"] == ""  # without a budget it does not come to an answer


def test_options_have_their_effect(thinker: Path) -> None:
    free = report(thinker, "--thinking-budget", 0)
    assert (free["stop_reason"], free["tokens"], free["reasoning"]) == ("length", 30, "")
    assert len(set(free["text"])) == 1  # a random model with tied weights says the same again and again
    varied = report(thinker, "--thinking-budget", 0, "--frequency-penalty", 20)
    assert len(set(varied["text"])) > 5
    biased = report(thinker, "--thinking-budget", 0, "--logit-bias", "40:100")
    assert biased["text"] == "I" * 30 != free["text"]
    stopped = report(thinker, "--thinking-budget", 0, "--logit-bias", "40:100", "--stop-id", 40)
    assert (stopped["stop_reason"], stopped["text"], stopped["tokens"]) == ("stop", "", 0)
    assert report(thinker, "--deadline", 1e-9)["stop_reason"] == "deadline"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--logit-bias", "5"], 2, "'5' is not ID:VALUE"),
        (["--logit-bias", "a:1"], 2, "'a:1' is not ID:VALUE"),
        (["--logit-bias", "5:1000"], 9, "logit_bias[5] is 1000.0; valid: from -100 to 100"),
        (["--deadline", "0"], 9, "deadline is 0.0; valid"),
        (["--presence-penalty", "500"], 9, "presence_penalty is 500.0; valid"),
        (["--thinking-budget", "-1"], 2, "thinking-budget"),
        (["--thinking-budget", "5", "--raw"], 2, "--thinking-budget needs the chat template"),
        (["--thinking", "--raw"], 2, "--thinking needs the chat template"),
        (["--thinking", "--thinking-budget", "0"], 9, "thinking_budget is 0 and enable_thinking is True"),
    ],
)
def test_bad_options_are_explained(thinker: Path, options: list[str], code: int, message: str) -> None:
    result = run("run", thinker, "Hello", *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("{", 2, "cannot be read as JSON"),
        ('{"name": "f"}', 2, "holds no list of functions"),
        ('[{"description": "f"}]', 9, "tool 0 is"),
    ],
)
def test_bad_tool_files_are_explained(
    thinker: Path, tmp_path: Path, content: str, code: int, message: str
) -> None:
    (tmp_path / "tools.json").write_text(content)
    result = run("run", thinker, "Hello", "--tools", tmp_path / "tools.json")
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


def test_tool_calls_are_lines_of_json(nano: Path) -> None:
    result = run("run", nano, "Turn on the kitchen light", "--temperature", 0)
    assert result.exit_code == 0
    call = json.loads(result.stdout)
    assert call["arguments"]["room"] == "kitchen"
    printed = json.loads(run("run", nano, "Turn on the kitchen light", "--temperature", 0, "--json").stdout)
    assert printed["tool_calls"] == [call]
    assert printed["malformed_tool_calls"] == []


LIGHTS = {"name": "lights", "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}}}


def test_answers_follow_what_is_asked_for(nano: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="needs llguidance (the extra `structured`)")
    (tmp_path / "schema.json").write_text('{"enum": ["yes", "no"]}')
    (tmp_path / "grammar.lark").write_text('start: "on" | "off"')
    (tmp_path / "tools.json").write_text(json.dumps([LIGHTS]))
    question = ("run", nano, "Is the light on?")
    assert json.loads(run(*question, "--json-schema", tmp_path / "schema.json").stdout) in ("yes", "no")
    assert run(*question, "--grammar", tmp_path / "grammar.lark").stdout in ("on\n", "off\n")
    assert run(*question, "--regex", "[0-9]{4}", "--raw").stdout.strip().isdigit()
    tools = ("--tools", tmp_path / "tools.json", "--tool-choice")
    assert json.loads(run(*question, *tools, "lights").stdout)["name"] == "lights"
    assert json.loads(run(*question, *tools, "required").stdout.splitlines()[0])["name"] == "lights"
    turns = run("chat", nano, "--regex", "[0-9]{4}", stdin="Hello\nAgain\n")
    assert all(line.isdigit() for line in turns.stdout.split())


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--json-schema", "missing.json"], 2, "missing.json cannot be read"),
        (["--grammar", "missing.lark"], 2, "missing.lark cannot be read"),
        (["--tool-choice", "f", "--raw"], 2, "--tool-choice needs the chat template"),
        (["--tool-choice", "f"], 9, "tool_choice is 'f', but there are no tools"),
        (["--regex", "("], 9, "regex cannot be used"),
        (
            ["--regex", "a", "--grammar", "G"],
            9,
            "both regex and grammar are given; valid: at most one of them",
        ),
        (["--json-schema", "G"], 9, "json_schema is not JSON"),
    ],
)
def test_what_cannot_be_followed_is_explained(
    nano: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: int,
    message: str,
) -> None:
    pytest.importorskip("llguidance", reason="needs llguidance (the extra `structured`)")
    monkeypatch.chdir(tmp_path)
    Path("G").write_text('start: "a"')
    result = run("run", nano, "Hello", *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


def test_chat_goes_on_after_a_tool_call(nano: Path) -> None:
    result = run("chat", nano, "--temperature", 0, stdin="Turn on the kitchen light\nWhat is 2 + 3?\n")
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert json.loads(first)["name"]
    assert second


def test_a_call_that_cannot_be_made_is_a_warning(nano: Path) -> None:
    """Cut off in the middle."""
    result = run("run", nano, "Turn on the kitchen light", "--temperature", 0, "--no-thinking", "-n", 8)
    assert result.stdout == ""
    assert result.stderr.startswith("warning: malformed tool call, it has no </tool_call>: ")
