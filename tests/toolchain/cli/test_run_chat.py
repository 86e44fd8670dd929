"""`qtool run` and `qtool chat`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import qtool_runtime
from support.fixtures import Artifacts, Checkpoints

from .conftest import Invoke


@pytest.fixture
def artifact(tiny_artifact: Artifacts) -> Path:
    return tiny_artifact("x64-int4", "qwen3")


@pytest.fixture(scope="module")
def expected(tiny_artifact: Artifacts) -> Any:
    """What the runtime itself answers, greedily, in eight tokens."""

    def answer(*messages: tuple[str, str]) -> str:
        with qtool_runtime.load(tiny_artifact("x64-int4", "qwen3")) as model:
            turns = [{"role": role, "content": content} for role, content in messages]
            return model.chat(turns, temperature=0, max_tokens=8).read()

    return answer


GREEDY = ["--temperature", 0, "--max-tokens", 8]


class TestRun:
    def test_prints_the_answer_alone(self, invoke: Invoke, artifact: Path, expected: Any) -> None:
        result = invoke("run", artifact, "Hello world", *GREEDY)
        assert result.exit_code == 0
        assert result.stdout == expected(("user", "Hello world")) + "\n"
        assert result.stderr == ""

    def test_takes_a_system_message(self, invoke: Invoke, artifact: Path, expected: Any) -> None:
        result = invoke("run", artifact, "Hello", "--system", "Be brief.", *GREEDY)
        assert result.stdout == expected(("system", "Be brief."), ("user", "Hello")) + "\n"

    def test_reads_the_prompt_from_standard_input(
        self, invoke: Invoke, artifact: Path, expected: Any
    ) -> None:
        result = invoke("run", artifact, "-", *GREEDY, input="Hello world")
        assert result.stdout == expected(("user", "Hello world")) + "\n"

    def test_raw_continues_the_prompt(self, invoke: Invoke, artifact: Path) -> None:
        with qtool_runtime.load(artifact) as model:
            text = model.generate("the world", max_tokens=6).read()
        assert invoke("run", artifact, "the world", "--raw", "-n", 6).stdout == text + "\n"

    def test_raw_has_no_system_message(self, invoke: Invoke, artifact: Path) -> None:
        result = invoke("run", artifact, "x", "--raw", "--system", "y")
        assert result.exit_code == 2
        assert "--system needs the chat template" in result.stderr

    @pytest.mark.parametrize("command", ["run", "chat"])
    def test_the_engine_makes_no_difference(
        self, invoke: Invoke, artifact: Path, expected: Any, command: str
    ) -> None:
        pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")
        question = {"run": ["Hello world"], "chat": []}[command]
        result = invoke(command, artifact, *question, "--engine", "genai", *GREEDY, input="Hello world\n")
        assert result.exit_code == 0
        assert result.stdout == expected(("user", "Hello world")) + "\n"

    def test_an_engine_that_is_not_installed(
        self, invoke: Invoke, artifact: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
        result = invoke("run", artifact, "Hello", "--engine", "genai")
        assert result.exit_code == 10
        assert 'hint: Install it: pip install "qtool-edge[genai]"' in result.stderr

    def test_json_holds_text_and_counts(self, invoke: Invoke, artifact: Path, expected: Any) -> None:
        report = json.loads(invoke("run", artifact, "Hello world", *GREEDY, "--json").stdout)
        assert report.keys() == {
            "text", "reasoning", "tool_calls", "malformed_tool_calls",
            "stop_reason", "prompt_tokens", "cached_tokens", "tokens", "time_to_first_token_seconds",
            "prefill_tokens_per_second", "decode_tokens_per_second", "kv_cache_bytes",
            "drafted_tokens", "accepted_tokens",
        }  # fmt: skip
        assert report["text"] == expected(("user", "Hello world"))
        assert report["stop_reason"] in ("length", "eos")
        assert 0 < report["tokens"] <= 8
        assert report["kv_cache_bytes"] > 0

    def test_several_answers(self, invoke: Invoke, artifact: Path) -> None:
        options = ["--temperature", 1, "--seed", 3, "-n", 6, "--candidates", 3]
        reports = json.loads(invoke("run", artifact, "Hello", *options, "--json").stdout)
        with qtool_runtime.load(artifact) as model:
            stream = model.chat(
                [{"role": "user", "content": "Hello"}], temperature=1, seed=3, max_tokens=6, candidates=3
            )
            assert [report["text"] for report in reports] == stream.candidates.read()
        result = invoke("run", artifact, "Hello", *options)
        assert result.stdout == "".join(report["text"] + "\n" for report in reports)
        assert "answer 3 of 3" in result.stderr

    def test_log_probabilities(self, invoke: Invoke, artifact: Path) -> None:
        report = json.loads(invoke("run", artifact, "Hello", *GREEDY, "--logprobs", 2, "--json").stdout)
        assert len(report["logprobs"]) == report["tokens"]
        first = report["logprobs"][0]
        assert first["logprob"] == first["alternatives"][0]["logprob"] < 0
        assert len(first["alternatives"]) == 2
        banned = ["--ban", first["token_id"]]
        other = json.loads(
            invoke("run", artifact, "Hello", *GREEDY, *banned, "--logprobs", 0, "--json").stdout
        )
        assert other["logprobs"][0]["token_id"] == first["alternatives"][1]["token_id"]
        assert invoke("run", artifact, "Hello", "--logprobs", 2).exit_code == 2

    def test_stats_are_on_stderr(self, invoke: Invoke, artifact: Path, expected: Any) -> None:
        result = invoke("run", artifact, "Hello world", *GREEDY, "--stats")
        assert result.stdout == expected(("user", "Hello world")) + "\n"
        assert "prompt tokens " in result.stderr
        assert "decode tokens per second " in result.stderr

    def test_a_seed_repeats_an_answer(self, invoke: Invoke, artifact: Path) -> None:
        command = ["run", artifact, "Hello", "--temperature", 1, "-n", 12, "--seed"]
        texts = [invoke(*command, seed).stdout for seed in (1, 1, 2, 3)]
        assert texts[0] == texts[1]
        assert len(set(texts)) > 1

    def test_stop_ends_before_the_text(self, invoke: Invoke, artifact: Path, expected: Any) -> None:
        text = expected(("user", "Hello world"))
        assert len(text) > 3
        result = invoke("run", artifact, "Hello world", *GREEDY, "--stop", text[2:4], "--json")
        report = json.loads(result.stdout)
        assert report["stop_reason"] == "stop"
        assert text.startswith(report["text"])
        assert text[2:4] not in report["text"]

    @pytest.mark.parametrize(
        ("options", "code", "message"),
        [
            (["--context", 9999], 9, "context is 9999 tokens; the artifact was planned for at most 256"),
            (["--max-tokens", 300], 9, "together at most 256 fit"),
            (["--temperature", -1], 9, "temperature"),
            (["--temperature", "nan"], 9, "temperature"),
            (["--top-p", 2], 9, "top_p"),
            (["--top-k", -1], 9, "top_k"),
            (["--seed", -5], 9, "seed"),
            (["--provider", "tpu"], 8, "the provider 'tpu' is unknown"),
            (["--provider", "cuda"], 8, "CUDAExecutionProvider"),
            (["--threads", 99999], 9, "threads"),
            (["--engine", "llama"], 2, "'llama' is not one of 'onnxruntime', 'genai'"),
            (["--max-tokens", 0], 2, "0 is not in the range"),
            (["--temperature", "warm"], 2, "'warm' is not a valid float"),
        ],
    )
    def test_options_that_cannot_be(
        self, invoke: Invoke, artifact: Path, options: list[object], code: int, message: str
    ) -> None:
        result = invoke("run", artifact, "Hello", *options)
        assert result.exit_code == code, result.stderr
        assert message in result.stderr
        assert result.stdout == ""

    def test_a_model_without_a_template_says_what_else_to_do(
        self, invoke: Invoke, artifact: Path, tmp_path: Path
    ) -> None:
        from qtool_runtime import manifest

        folder = shutil.copytree(artifact, tmp_path / "base")
        document = manifest.read(folder)
        (folder / "chat_template.jinja").unlink()
        files = tuple(entry for entry in document.files if entry.path != "chat_template.jinja")
        changed = type(document)(**{**vars(document), "files": files})
        (folder / "manifest.json").write_text(changed.to_json(), "utf-8")
        result = invoke("run", folder, "Hello")
        assert result.exit_code == 9
        assert "error: the artifact has no chat template: it is a base model" in result.stderr
        assert invoke("run", folder, "Hello", "--raw", "-n", 2).exit_code == 0


class TestBakedPrompt:
    @pytest.fixture
    def baked(self, invoke: Invoke, tiny_checkpoint: Checkpoints, tmp_path: Path) -> Path:
        (tmp_path / "system.txt").write_text("Be brief.\n")
        options = ["--bake-prompt", tmp_path / "system.txt", "-t", "x64-int4", "-o", tmp_path / "baked"]
        result = invoke("build", tiny_checkpoint("qwen3").folder, *options)
        assert result.exit_code == 0, result.stderr
        return tmp_path / "baked"

    def test_it_is_the_system_message_unless_another_is_given(
        self, invoke: Invoke, baked: Path, expected: Any
    ) -> None:
        own = expected(("system", "Be brief."), ("user", "Hello")) + "\n"
        assert invoke("run", baked, "Hello", *GREEDY).stdout == own
        assert invoke("chat", baked, *GREEDY, input="Hello\n").stdout == own
        assert json.loads(invoke("batch", baked, "-", *GREEDY, input="Hello\n").stdout)["text"] + "\n" == own
        other = expected(("system", "Be kind."), ("user", "Hello")) + "\n"
        assert invoke("run", baked, "Hello", "--system", "Be kind.", *GREEDY).stdout == other
        report = json.loads(invoke("run", baked, "Hello", *GREEDY, "--json").stdout)
        assert report["cached_tokens"] > 0.5 * report["prompt_tokens"]

    def test_it_is_planned(self, invoke: Invoke, tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
        (tmp_path / "system.txt").write_text("Be brief.\n")
        options = ["--bake-prompt", tmp_path / "system.txt", "-t", "x64-int4", "--plan"]
        result = invoke("build", tiny_checkpoint("qwen3").folder, *options)
        assert "system prompt" in result.stdout
        assert "tokens baked in, 0.0 MB" in result.stdout

    def test_a_missing_file_is_exit_3(self, invoke: Invoke, tmp_path: Path) -> None:
        result = invoke("build", "-t", "x64-int4", "-o", tmp_path / "a", "--bake-prompt", tmp_path / "b")
        assert result.exit_code == 3
        assert "is not a file" in result.stderr


class TestChat:
    def test_every_line_is_a_turn_that_sees_those_before(
        self, invoke: Invoke, artifact: Path, expected: Any
    ) -> None:
        result = invoke("chat", artifact, *GREEDY, input="Hello\nthe world\n")
        assert result.exit_code == 0
        first = expected(("user", "Hello"))
        second = expected(("user", "Hello"), ("assistant", first), ("user", "the world"))
        assert result.stdout == f"{first}\n{second}\n"
        assert "tiny-qwen3, 256 tokens of context" in result.stderr

    def test_clear_forgets_all_but_the_system_message(
        self, invoke: Invoke, artifact: Path, expected: Any
    ) -> None:
        turns = "Hello\n/clear\nHello\n/exit\nnever\n"
        result = invoke("chat", artifact, "--system", "Be brief.", *GREEDY, input=turns)
        answer = expected(("system", "Be brief."), ("user", "Hello"))
        assert result.stdout == f"{answer}\n{answer}\n"
        assert "forgotten" in result.stderr

    def test_empty_lines_are_no_turns_and_unknown_commands_are_named(
        self, invoke: Invoke, artifact: Path, expected: Any
    ) -> None:
        result = invoke("chat", artifact, *GREEDY, input="\n   \n/help me\nHello\n")
        assert result.stdout == expected(("user", "Hello")) + "\n"
        assert "unknown command '/help'" in result.stderr

    def test_a_turn_that_is_too_long_does_not_end_the_conversation(
        self, invoke: Invoke, artifact: Path, expected: Any
    ) -> None:
        result = invoke("chat", artifact, *GREEDY, input=f"{'x' * 900}\nHello\n")
        assert result.exit_code == 0
        assert "error: the prompt has" in result.stderr
        assert "hint: /clear forgets the conversation and makes room." in result.stderr
        assert result.stdout == expected(("user", "Hello")) + "\n"

    def test_a_conversation_goes_on_from_its_state(
        self, invoke: Invoke, artifact: Path, expected: Any, tmp_path: Path
    ) -> None:
        state = tmp_path / "talk.kv"
        first = invoke("chat", artifact, "--state", state, "--system", "Be brief.", *GREEDY, input="Hello\n")
        second = invoke("chat", artifact, "--state", state, *GREEDY, input="the world\n")
        answer = expected(("system", "Be brief."), ("user", "Hello"))
        turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", answer), ("user", "the world")]
        assert first.stdout == f"{answer}\n"
        assert second.stdout == f"{expected(*turns)}\n"
        with qtool_runtime.load(artifact) as model:
            saved = model.load_prefix(state)
        assert [message["role"] for message in saved.messages] == [role for role, _ in turns] + ["assistant"]

    def test_a_state_has_its_own_system_message(self, invoke: Invoke, artifact: Path, tmp_path: Path) -> None:
        state = tmp_path / "talk.kv"
        assert invoke("chat", artifact, "--state", state, input="").exit_code == 0
        result = invoke("chat", artifact, "--state", state, "--system", "Be brief.", input="")
        assert result.exit_code == 2
        assert "--system is for a new conversation" in result.stderr

    def test_a_state_needs_keys_and_values(self, invoke: Invoke, artifact: Path, tmp_path: Path) -> None:
        result = invoke("chat", artifact, "--state", tmp_path / "talk.kv", "--engine", "genai", input="Hi\n")
        assert result.exit_code == 2
        assert "--state needs keys and values, which the engine genai does not give" in result.stderr

    def test_where_the_state_cannot_be_saved_is_known_before_the_first_turn(
        self, invoke: Invoke, artifact: Path, tmp_path: Path
    ) -> None:
        result = invoke("chat", artifact, "--state", tmp_path / "none" / "talk.kv", input="Hello\n")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "there is no folder" in result.stderr

    def test_a_state_that_is_none_is_exit_7_and_stays_as_it_is(
        self, invoke: Invoke, artifact: Path, tiny_artifact: Artifacts, tmp_path: Path
    ) -> None:
        state = tmp_path / "talk.kv"
        state.write_text("my notes")
        result = invoke("chat", artifact, "--state", state, input="Hello\n")
        assert (result.exit_code, state.read_text()) == (7, "my notes")
        assert "is not a file of keys and values" in result.stderr
        state.unlink()
        invoke("chat", tiny_artifact("x64-int8", "qwen3"), "--state", state, input="")
        result = invoke("chat", artifact, "--state", state, input="Hello\n")
        assert result.exit_code == 7
        assert "is of another model" in result.stderr

    def test_no_input_is_a_short_conversation(self, invoke: Invoke, artifact: Path) -> None:
        result = invoke("chat", artifact, input="")
        assert (result.exit_code, result.stdout) == (0, "")
