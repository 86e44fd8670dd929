"""System prompts that the build reads: the same answers, sooner."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import qtool
import qtool_runtime
from qtool.artifact.verify import verify
from qtool.cli import cli
from qtool.errors import (
    ContextLimitError,
    GenerationError,
    IncompatibleRuntimeError,
    MissingExtraError,
    QtoolError,
    SourceError,
)
from qtool.jobs import plan_jobs
from qtool_runtime import KvFileError, manifest
from qtool_runtime.integrity import sha256_of
from qtool_runtime.manifest import FileEntry
from support.fixtures import Artifacts, Checkpoints
from support.kernels import require_int8_kv_cache

TEXT = "You are the assistant of a café: be brief, be kind, <|im_end|> and never mention the cat. " * 2
QUESTIONS = ("Hello world", "What is on the mat?")
BUILDS = [("x64-int4", "qwen2", None), ("x64-int8", "qwen3", None), ("x64-int4", "qwen3", "int8")]


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompt") / "system.txt"
    path.write_text(f"{TEXT}\n", "utf-8")
    return path


@pytest.fixture(scope="module", params=BUILDS, ids=lambda build: "-".join(map(str, build)))
def options(request: pytest.FixtureRequest, tiny_checkpoint: Checkpoints) -> dict[str, Any]:
    target, architecture, kv_cache = request.param
    if kv_cache == "int8":
        require_int8_kv_cache()
    return {"model": tiny_checkpoint(architecture).folder, "target": target, "kv_cache": kv_cache}


@pytest.fixture(scope="module")
def plain(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qtool.build(**options, output=tmp_path_factory.mktemp("plain") / "artifact").path


@pytest.fixture(scope="module")
def baked(options: dict[str, Any], prompt_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baked") / "artifact"
    return qtool.build(**options, bake_prompt=prompt_file, output=folder, threads=2).path


def ask(model: qtool_runtime.Model, question: str, **options: Any) -> qtool_runtime.TextStream:
    messages = [{"role": "system", "content": TEXT}, {"role": "user", "content": question}]
    stream = model.chat(messages, temperature=0, max_tokens=8, ignore_eos=True, logprobs=2, **options)
    stream.read()
    return stream


def test_answers_are_the_same_and_the_prompt_is_not_read(plain: Path, baked: Path) -> None:
    tokens = manifest.read(baked).baked_prompt.tokens  # type: ignore[union-attr]
    with (
        # A build bakes with ONNX Runtime's own kernels, whether others are installed or not.
        qtool_runtime.load(plain, threads=1, kernels="off", prefix_memory=0) as reference,
        qtool_runtime.load(baked, threads=1, kernels="off", prefix_memory=0, verify=True) as model,
    ):
        assert (reference.baked_prompt, model.baked_prompt) == (None, TEXT)
        for question in QUESTIONS:
            expected, found = ask(reference, question), ask(model, question)
            assert found.token_ids == expected.token_ids
            assert (expected.stats.cached_tokens, found.stats.cached_tokens) == (0, tokens)
            for one, other in zip(found.logprobs, expected.logprobs, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert model.prefix_memory.bytes == 0


def test_it_stays_when_the_memory_is_full_or_cleared(baked: Path) -> None:
    tokens = manifest.read(baked).baked_prompt.tokens  # type: ignore[union-attr]
    with qtool_runtime.load(baked, threads=1, prefix_memory=100_000) as model:
        for number in range(20):
            model.generate(f"{number} the cat", max_tokens=40, ignore_eos=True).read()
        model.forget()
        assert ask(model, QUESTIONS[0]).stats.cached_tokens == tokens
        assert ask(model, QUESTIONS[0]).stats.cached_tokens > tokens  # what follows it is remembered as usual


def test_an_engine_that_hides_keys_and_values_reads_it(baked: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    if manifest.read(baked).kv_cache.dtype == "int8":
        pytest.skip("onnxruntime-genai's kernels have no int8 cache on the CPU")
    with (
        qtool_runtime.load(baked, threads=1, engine="genai") as model,
        qtool_runtime.load(baked, threads=1) as reference,
    ):
        found = ask(model, QUESTIONS[0])
        assert found.token_ids == ask(reference, QUESTIONS[0]).token_ids
        assert found.stats.cached_tokens == 0
        with pytest.raises(GenerationError, match="keeps its keys and values to itself"):
            model.save_prefix("never.kv", TEXT)


def test_another_system_message_does_not_match(baked: Path) -> None:
    with qtool_runtime.load(baked, threads=1) as model:
        messages = [{"role": "system", "content": "Hi"}, {"role": "user", "content": "x"}]
        stream = model.chat(messages, max_tokens=2)
        stream.read()
        assert 0 < stream.stats.cached_tokens < 10  # the control tokens before the message


def test_two_builds_give_the_same_bytes(
    options: dict[str, Any], baked: Path, prompt_file: Path, tmp_path: Path
) -> None:
    again = qtool.build(**options, bake_prompt=prompt_file, output=tmp_path / "again", threads=1).path
    for path in baked.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_it_is_planned_listed_shown_and_verified(
    options: dict[str, Any], plain: Path, baked: Path, prompt_file: Path
) -> None:
    model, target = options.pop("model"), options.pop("target")
    plans = [
        plan_jobs(model, [target], kv_cache=options["kv_cache"], bake_prompt=prompt, plan_only=True)[0].plan
        for prompt in (None, prompt_file)
    ]
    options |= {"model": model, "target": target}
    document = manifest.read(baked)
    assert document.baked_prompt is not None
    sizes = {entry.path: entry.size for entry in document.files}
    added = sizes["system_prompt.kv"] + sizes["system_prompt.txt"]
    assert plans[1].artifact - plans[0].artifact == added
    assert plans[1].device.peak - plans[0].device.peak == added
    assert document.memory.peak - manifest.read(plain).memory.peak == added
    assert plans[1].system_prompt == document.baked_prompt.tokens
    assert manifest.read(plain).kv_digest("cpu") == document.kv_digest("cpu")
    shown = CliRunner().invoke(cli, ["inspect", str(baked)]).stdout
    assert f"{document.baked_prompt.tokens} tokens baked in" in shown
    (check,) = [check for check in verify(baked).checks if check.name == "system prompt"]
    assert check.status == "passed"


def test_keys_and_values_of_another_model_are_found_out(
    baked: Path, tiny_artifact: Artifacts, tmp_path: Path
) -> None:
    """A manifest that was written anew around a file of another model's."""
    folder = shutil.copytree(baked, tmp_path / "artifact")
    with qtool_runtime.load(tiny_artifact("x64-int8", "qwen2")) as other:
        other.save_prefix(folder / "system_prompt.kv", "the cat sat")
    path = folder / "system_prompt.kv"
    entry = FileEntry(path.name, path.stat().st_size, sha256_of(path))
    document = manifest.read(folder)
    files = tuple(entry if item.path == entry.path else item for item in document.files)
    (folder / manifest.FILE_NAME).write_text(replace(document, files=files).to_json(), "utf-8")
    (failed,) = verify(folder).problems
    assert failed.name == "system prompt"
    assert "is of another model" in failed.detail
    with pytest.raises(KvFileError, match="is of another model"):
        qtool_runtime.load(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "is not a file"), (b"", "is empty"), (b"\n", "is empty"), (b"caf\xe9", "is not UTF-8")],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "system.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=reason):
        qtool.build(target="x64-int4", bake_prompt=path, output=tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def refused(tmp_path: Path, error: type[QtoolError], reason: str, **options: Any) -> None:
    """Checks that nothing is left of a build, nor begun."""
    stages: list[str] = []
    folder = tmp_path / "output"
    with pytest.raises(error, match=reason):
        qtool.build(
            **options,
            output=folder / "artifact",
            progress=lambda stage, done, total: stages.append(stage),
        )
    assert stages == []
    assert not folder.exists()


def test_a_prompt_without_room_for_a_conversation_is_refused(tmp_path: Path, prompt_file: Path) -> None:
    reason = r"the system prompt has \d+ tokens, the context is 32"
    refused(tmp_path, ContextLimitError, reason, target="x64-int4", context=32, bake_prompt=prompt_file)


def test_a_provider_that_is_not_here_is_refused(tmp_path: Path, prompt_file: Path) -> None:
    pytest.importorskip("onnxruntime")
    reason = "baked by running the model, which takes WebGpuExecutionProvider; this onnxruntime has"
    refused(tmp_path, IncompatibleRuntimeError, reason, target="web-int4", bake_prompt=prompt_file)


def test_without_onnxruntime_the_extra_is_named(
    tmp_path: Path, prompt_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    reason = "onnxruntime is not installed"
    refused(tmp_path, MissingExtraError, reason, target="x64-int4", bake_prompt=prompt_file)


def test_models_that_have_no_system_messages_are_refused(
    tmp_path: Path, tiny_checkpoint: Checkpoints, prompt_file: Path
) -> None:
    source = shutil.copytree(tiny_checkpoint("qwen2").folder, tmp_path / "source")
    options = {"model": source, "target": "x64-int4", "bake_prompt": prompt_file}
    (source / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    refused(tmp_path, GenerationError, "no system role", **options)
    (source / "chat_template.jinja").unlink()
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    refused(tmp_path, GenerationError, "no chat template", **options)
    (source / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match="has no tokenizer"):
        plan_jobs(source, ["x64-int4"], bake_prompt=prompt_file, plan_only=True)
