"""Answers of the page's modules in Node.js (WebAssembly), beside those of the Python runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qtool
import qtool_runtime
from qtool_runtime.manifest import DIGEST_KEY
from support.fixtures import Node
from support.raw_session import RawSession, distance, with_exact_activations
from support.tolerances import TOLERANCES
from support.web_server import serve

QUESTIONS = ["What is 7 + 5?", "Turn on the kitchen light", "What can you do?", "Schreib ein Gedicht über 🙂"]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


@pytest.fixture(scope="module")
def address(page_folder: Path) -> Iterator[str]:
    with serve(page_folder) as root:
        yield f"{root}model/"


@pytest.mark.parametrize("thinking", [None, False])
def test_greedy_answers_are_equal(
    node: Node, address: str, python_model: qtool_runtime.Model, thinking: bool | None
) -> None:
    options: dict[str, Any] = {"temperature": 0, "maxTokens": 60}
    if thinking is not None:
        options["enableThinking"] = thinking
    found = node("chat", model=address, conversations=[[user(text)] for text in QUESTIONS], options=options)
    assert found["provider"] == "wasm"
    for question, answer in zip(QUESTIONS, found["answers"], strict=True):
        stream = python_model.chat([user(question)], temperature=0, max_tokens=60, enable_thinking=thinking)
        text = stream.read()
        assert answer["tokenIds"] == list(stream.token_ids), question
        assert answer["reasoning"] == stream.reasoning
        assert answer["answer"].startswith("<tool_call>") if stream.tool_calls else answer["answer"] == text
        stats = answer["stats"]
        assert stats["answerTokens"] == len(stream.token_ids)
        assert stats["promptTokens"] == stream.stats.prompt_tokens
        assert stats["stopReason"] == stream.stop_reason
        assert stats["decodeRate"] > 0 < stats["firstTokenSeconds"]


def test_logits_are_near(
    node: Node, address: str, python_model: qtool_runtime.Model, web_artifact: Path, tmp_path: Path
) -> None:
    """They are those of the weights in float32; the Python runtime rounds activations to int8."""
    exact = with_exact_activations(web_artifact, tmp_path / "exact")
    source = np.random.default_rng(4)
    prompts = [source.integers(0, 1000, size).tolist() for size in (1, 2, 5, 130, 300)]
    for prompt, logits in zip(prompts, node("logits", model=address, prompts=prompts), strict=True):
        session = python_model.new_session()
        assert distance([logits], session.forward(prompt)) < TOLERANCES["int4"]["dequantized"]
        expected = RawSession(exact, capacity=512).forward(prompt)
        assert distance([logits], expected) < TOLERANCES["float32"]["reference"]


def test_next_turn_reads_only_what_is_new(
    node: Node, address: str, python_model: qtool_runtime.Model
) -> None:
    first = [user("What is 7 + 5?")]
    second = [*first, {"role": "assistant", "content": "7 + 5 = 12."}, user("What can you do?")]
    other = [user("Turn on the kitchen light")]  # the cache is longer than this prompt
    options = {"temperature": 0, "maxTokens": 40}
    found = node("chat", model=address, conversations=[first, second, other], options=options)["answers"]
    prompt_tokens = found[0]["stats"]["promptTokens"]
    assert [answer["stats"]["cachedTokens"] for answer in found[1:]] == [prompt_tokens, 3]
    for messages, answer in zip([first, second], found, strict=False):
        stream = python_model.chat(messages, temperature=0, max_tokens=40)
        assert answer["answer"] == stream.read()
        assert answer["reasoning"] == stream.reasoning


def test_cancelling_ends_an_answer_and_leaves_the_model_usable(
    node: Node, address: str, python_model: qtool_runtime.Model
) -> None:
    found = node("cancel", model=address, messages=[user("What is 7 + 5?")], after=4)
    cancelled = found["cancelled"]
    assert cancelled["stats"]["stopReason"] == "cancelled"
    assert cancelled["events"] in (4, 5)
    stream = python_model.chat([user("What is 7 + 5?")], temperature=0)
    assert found["next"]["answer"] == stream.read()


def test_draws_follow_the_probabilities(node: Node) -> None:
    logits, draws = [2.0, 1.0, 0.5, 0.5, -1.0, -30.0], 20_000
    cases = [
        ({"temperature": 1}, [1, 1, 1, 1, 1, 1]),
        ({"temperature": 0.5}, [1, 1, 1, 1, 1, 1]),
        ({"temperature": 1, "topK": 3}, [1, 1, 1, 0, 0, 0]),  # of equals, the lower id
        ({"temperature": 1, "topP": 0.7}, [1, 1, 0, 0, 0, 0]),
        ({"temperature": 1, "topK": 4, "topP": 0.5}, [1, 0, 0, 0, 0, 0]),
        ({"temperature": 0}, [1, 0, 0, 0, 0, 0]),
    ]
    rest = {"topK": 0, "topP": 1, "repetitionPenalty": 1, "seed": 7}
    for options, kept in cases:
        found = node("sample", logits=logits, options=rest | options, prompt=[], draws=draws)
        weights = np.exp(np.array(logits) / (options["temperature"] or 1)) * kept
        expected = weights / weights.sum()
        error = np.sqrt(expected * (1 - expected) / draws)
        assert np.all(np.abs(np.array(found) / draws - expected) <= 4 * error + 1e-9), options
        assert found == node("sample", logits=logits, options=rest | options, prompt=[], draws=draws)


def test_repetition_penalty_counts_prompt_and_answer(node: Node) -> None:
    options = {"temperature": 0, "topK": 0, "topP": 1, "repetitionPenalty": 2, "seed": None}
    # 3 (used) halves to 1.5, below 2; once 2 is used too, it is 1, and 3 is the largest again.
    assert node("sample", logits=[3.0, 2.0, -1.0], options=options, prompt=[0], draws=3) == [2, 1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1; valid: 0 (greedy), or from 0.001 to 100"),
        ({"topP": 0}, "topP is 0; valid: above 0, up to 1"),
        ({"topK": 1.5}, "topK is 1.5; valid: 0 (all), or a count"),
        ({"seed": -1}, "seed is -1; valid: none, or an integer from 0 to 2^32 - 1"),
        ({"maxTokens": 0}, "maxTokens is 0; valid: an integer from 1"),
    ],
)
def test_options_are_checked(node: Node, address: str, options: dict[str, Any], message: str) -> None:
    error = node("refuse", model=address, messages=[user("Hi")], options=options)
    assert (error["name"], error["message"]) == ("QtoolError", message)


def test_prompt_beyond_the_context_is_refused(node: Node, address: str) -> None:
    error = node("refuse", model=address, messages=[user("word " * 3000)], options={})
    assert error["name"] == "QtoolError" and "the context holds 2048" in error["message"]


def with_change(manifest: bytes, old: bytes, new: bytes) -> bytes:
    assert old in manifest
    return manifest.replace(old, new)


def test_damage_is_found_and_named(node: Node, page_folder: Path) -> None:
    model = page_folder / "model"
    weights = (model / "model.onnx.data").read_bytes()
    flipped = bytes([weights[0] ^ 1]) + weights[1:]
    manifest = (model / "manifest.json").read_bytes()
    digest = json.loads(manifest)[DIGEST_KEY].encode()
    cases: list[tuple[str, bytes | None, str]] = [
        ("model.onnx.data", None, "model.onnx.data cannot be loaded: the server answered 404"),
        ("model.onnx.data", flipped, "model.onnx.data is damaged: its SHA-256 is"),
        ("model.onnx.data", weights[:-5], "model.onnx.data is damaged: the download ended after"),
        ("model.onnx.data", weights + b"x", "model.onnx.data is damaged: it is longer than"),
        ("tokenizer.json", b"{", "tokenizer.json is damaged: the download ended after 1 of"),
        ("manifest.json", None, "manifest.json cannot be loaded: the server answered 404"),
        ("manifest.json", b"<html>", "manifest.json is no manifest"),
        ("manifest.json", b"\xff\xfe", "manifest.json is damaged: it is not UTF-8 text"),
        (
            "manifest.json",
            with_change(manifest, b'"context": 2048', b'"context": 9999'),
            "manifest.json was changed",
        ),
        ("manifest.json", with_change(manifest, digest, b"0" * 64), "manifest.json was changed"),
        (
            "manifest.json",
            with_change(manifest, b'"format_version": 1', b'"format_version": 9'),
            "manifest.json has the format version 9; this page reads 1",
        ),
    ]
    for name, content, message in cases:
        with serve(page_folder, instead={f"/model/{name}": content}) as root:
            error = node("fail", model=f"{root}model")
        assert error["name"] == "QtoolError"
        assert error["message"].startswith(message), error
        assert error["hint"]


def signed(manifest: dict[str, Any]) -> bytes:
    """Returns a manifest with the digest of what it says now."""
    manifest = {key: value for key, value in manifest.items() if key != DIGEST_KEY}

    def canonical(document: dict[str, Any]) -> bytes:
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
        return f"{text}\n".encode()

    return canonical(manifest | {DIGEST_KEY: hashlib.sha256(canonical(manifest)).hexdigest()})


def test_senseless_manifest_is_refused(node: Node, page_folder: Path) -> None:
    manifest = json.loads((page_folder / "model" / "manifest.json").read_bytes())
    assert signed(manifest) == (page_folder / "model" / "manifest.json").read_bytes()
    cache, (first, *others) = manifest["kv_cache"], manifest["files"]
    cases = [
        (manifest | {"context": 0}, "the manifest's context is 0; valid: 1 to"),
        (
            manifest | {"kv_cache": cache | {"layers": 1 << 40}},
            "the manifest's layers is 1099511627776; valid:",
        ),
        (
            manifest | {"files": [first | {"path": "../secret"}, *others]},
            'the manifest has a file "../secret"',
        ),
        (manifest | {"files": [first | {"size": -1}, *others]}, "the manifest has a file"),
        (manifest | {"files": [first | {"size": 1 << 33}, *others]}, "the artifact is larger than 4 GB"),
    ]
    for document, message in cases:
        with serve(page_folder, instead={"/model/manifest.json": signed(document)}) as root:
            error = node("fail", model=f"{root}model")
        assert error["name"] == "QtoolError" and error["message"].startswith(message), error


def test_artifact_for_something_else_is_refused(node: Node, tmp_path: Path) -> None:
    artifact = qtool.build(target="x64-int4", output=tmp_path / "other")
    with serve(artifact.path) as root:
        error = node("fail", model=root)
    assert error["message"] == "the artifact nano was built for x64-int4, which a browser cannot run"
    assert error["hint"] == "Build it with `--target web-int4`, and package that."


def test_server_that_is_gone_is_reported(node: Node, page_folder: Path) -> None:
    with serve(page_folder) as root:
        pass
    error = node("fail", model=f"{root}model")
    assert error["message"].startswith("manifest.json cannot be loaded: ")
    assert "Check the connection" in error["hint"]
