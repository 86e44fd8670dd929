"""Loading and generating as an application does it, on a tiny artifact."""

from __future__ import annotations

import gc
import shutil
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qtool_runtime import Model, load, manifest
from qtool_runtime.errors import (
    ArtifactError,
    ContextLimitError,
    GenerationError,
    IncompatibleRuntimeError,
    QtoolError,
)
from qtool_runtime.manifest import Generation, KvCache
from qtool_runtime.stream import TextStream

from .conftest import TEMPLATE
from .decoder_graphs import TinyDecoder, write_artifact

PROMPT = "the cat sat on the"
MESSAGES = [{"role": "user", "content": "the café"}]
NO_EOS = Generation(None, (), None, False, 1.0, 0, 1.0, 1.0)


@pytest.fixture
def write(tmp_path: Path, tokenizer_json: bytes):
    """Writes an artifact of the tests' tokenizer; keywords replace fields of the decoder."""

    def write(changes: dict | None = None, extra: dict | None = None, **tiny: object) -> Path:
        files = {"tokenizer.json": tokenizer_json, "chat_template.jinja": TEMPLATE.encode()} | (extra or {})
        return write_artifact(tmp_path / "artifact", TinyDecoder(**tiny), files, **(changes or {}))  # type: ignore[arg-type]

    return write


# Generating


def test_greedy_tokens_are_those_of_uncached_passes(model: Model) -> None:
    tokens = model.tokenizer.encode(PROMPT)
    expected: list[int] = []
    for _ in range(40):
        logits = model.new_session().forward([*tokens, *expected])
        expected.append(int(logits[-1].argmax()))
    stream = model.generate(PROMPT, max_tokens=40, ignore_eos=True)
    text = "".join(stream)
    assert list(stream.token_ids) == expected
    assert text == stream.text == model.tokenizer.decode(expected)


@pytest.mark.parametrize("tiny", [{"update": "concatenate"}, {"update": "concatenate", "logits_rows": False}])
def test_every_kind_of_graph_generates_the_same(model: Model, write, tiny: dict, engine: str) -> None:
    expected = model.generate(PROMPT, max_tokens=40, ignore_eos=True)
    expected.read()
    with load(write(**tiny), engine=engine) as other:
        assert other.generate(PROMPT, max_tokens=40, ignore_eos=True).read() == expected.text


def test_text_and_token_ids_are_the_same_prompt(model: Model) -> None:
    tokens = model.tokenizer.encode(PROMPT)
    texts = {
        model.generate(given, max_tokens=8).read() for given in (PROMPT, tokens, np.array(tokens, np.int32))
    }
    assert len(texts) == 1


def test_length_and_statistics(model: Model) -> None:
    model.forget()
    stream = model.generate(PROMPT, max_tokens=10, ignore_eos=True)
    assert stream.stop_reason is None
    assert (stream.text, stream.token_ids) == ("", ())
    stream.read()
    assert stream.stop_reason == "length"
    stats = stream.stats
    assert (stats.prompt_tokens, len(stats.token_ids)) == (len(model.tokenizer.encode(PROMPT)), 10)
    assert stats.time_to_first_token > 0
    assert stats.cached_tokens == 0
    assert stats.prefill_rate == pytest.approx(stats.prompt_tokens / stats.time_to_first_token)
    assert stats.decode_rate == pytest.approx(9 / stats.decode_seconds)
    held = stats.cache_bytes / model.manifest.kv_cache.bytes_per_token
    assert (
        stats.prompt_tokens + 9 == held if model.engine == "genai" else held == 128
    )  # a step, or the context
    with pytest.raises(StopIteration):
        next(stream)


def test_time_between_tokens_is_not_counted(model: Model) -> None:
    started = time.perf_counter()
    stream = model.generate(PROMPT, max_tokens=5, ignore_eos=True)
    slept = sum(1 for _ in stream if time.sleep(0.05) is None) * 0.05
    spent = time.perf_counter() - started
    assert slept > 0
    assert stream.stats.decode_seconds + stream.stats.prefill_seconds <= spent - slept


def test_context_ends_the_answer(model: Model) -> None:
    stream = model.generate(PROMPT, ignore_eos=True)
    stream.read()
    assert stream.stop_reason == "context"
    assert stream.stats.prompt_tokens + len(stream.token_ids) == model.context == 128
    full = model.generate(PROMPT, max_tokens=len(stream.token_ids), ignore_eos=True)
    assert full.read() == stream.text
    assert full.stop_reason == "length"


def test_full_prompt_leaves_room_for_one_token(model: Model) -> None:
    stream = model.generate([5] * 127, ignore_eos=True)
    stream.read()
    assert (len(stream.token_ids), stream.stop_reason) == (1, "context")


def test_eos_and_stop_ids(model: Model, write, engine: str) -> None:
    free = model.generate(PROMPT, max_tokens=20, ignore_eos=True)
    free.read()
    ending = free.token_ids[10]
    expected = free.token_ids[: free.token_ids.index(ending)]
    stream = model.generate(PROMPT, max_tokens=20, ignore_eos=True, stop_ids=[ending])
    assert stream.read() == model.tokenizer.decode(expected)
    assert (stream.token_ids, stream.stop_reason) == (expected, "stop")
    generation = Generation(None, (ending, 3), None, False, 1.0, 0, 1.0, 1.0)
    with load(write({"generation": generation}), engine=engine) as other:
        stream = other.generate(PROMPT, max_tokens=20)
        stream.read()
        assert (stream.token_ids, stream.stop_reason) == (expected, "eos")
        assert other.generate(PROMPT, max_tokens=20, ignore_eos=True).read() == free.text


def test_stop_strings(model: Model) -> None:
    free = model.generate(PROMPT, max_tokens=40, ignore_eos=True).read()
    word = free[10:14]
    for stop in (word, [word], ("never there", word)):
        stream = model.generate(PROMPT, max_tokens=40, ignore_eos=True, stop=stop)
        assert "".join(stream) == stream.text == free[: free.index(word)]
        assert stream.stop_reason == "stop"
        assert len(stream.token_ids) < 40
    assert model.generate(PROMPT, max_tokens=40, ignore_eos=True, stop="never there").read() == free


def test_seeded_sampling_repeats(model: Model) -> None:
    def run(seed: int | None) -> str:
        return model.generate(PROMPT, max_tokens=30, temperature=1.5, top_k=50, top_p=0.95, seed=seed).read()

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(None) != run(None)


def test_chat_uses_template_and_the_models_own_sampling(model: Model) -> None:
    prompt = "<|im_start|>user\nthe café<|im_end|>\n<|im_start|>assistant\n"
    chatted = model.chat(MESSAGES, max_tokens=20, seed=5).read()
    options = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    assert chatted == model.generate(prompt, max_tokens=20, seed=5, **options).read()
    greedy = model.generate(prompt, max_tokens=20, repetition_penalty=1.05).read()
    assert model.chat(MESSAGES, max_tokens=20, temperature=0).read() == greedy


def test_chat_is_greedy_where_the_model_does_not_sample(write) -> None:
    with load(write({"generation": NO_EOS})) as model:
        assert model.chat(MESSAGES, max_tokens=20).read() == model.chat(MESSAGES, max_tokens=20).read()


def test_nan_ends_in_an_error_not_in_a_token(write, engine: str) -> None:
    with load(write(poison=7), engine=engine) as model:
        stream = model.generate([1, 7, 2], max_tokens=3)
        with pytest.raises(GenerationError, match="nan as the logit"):
            stream.read()
        assert (stream.stop_reason, stream.token_ids) == ("error", ())


# Leaving half-way, and several at once


def cache_of(stream: TextStream) -> weakref.ref:
    """What holds the keys and values of a stream's session."""
    session = stream._session
    return weakref.ref(session._generator if hasattr(session, "_generator") else session._cache)


def test_closing_half_way_frees_the_cache(model: Model) -> None:
    stream = model.generate(PROMPT, ignore_eos=True)
    cache = cache_of(stream)
    first = next(stream)
    stream.close()
    assert cache() is None
    assert (stream.text, stream.stop_reason) == (first, "cancelled")
    assert list(stream) == []
    stream.close()


def test_ending_frees_the_cache_while_the_stream_lives(model: Model) -> None:
    stream = model.generate(PROMPT, max_tokens=3)
    cache = cache_of(stream)
    stream.read()
    assert cache() is None
    assert stream.text


def test_dropping_half_way_frees_everything_at_once(model: Model) -> None:
    gc.disable()  # reference counts alone must do it
    try:
        stream = model.generate(PROMPT, ignore_eos=True)
        session, cache = weakref.ref(stream._session), cache_of(stream)
        next(stream)
        del stream
        assert session() is None
        assert cache() is None
    finally:
        gc.enable()


def test_with_statement_closes(model: Model) -> None:
    with model.generate(PROMPT) as stream:
        next(stream)
    assert stream.stop_reason == "cancelled"
    with model.generate(PROMPT) as unused:
        pass
    assert unused.stop_reason == "cancelled"
    assert list(unused) == []


def test_cancel_from_another_thread(write, engine: str) -> None:
    with load(write({"generation": NO_EOS}, context=4000), engine=engine) as model:
        stream = model.generate(PROMPT)
        started, cancelled = threading.Event(), threading.Event()

        def cancel() -> None:
            started.wait()
            stream.cancel()
            cancelled.set()

        threading.Thread(target=cancel, daemon=True).start()
        for _ in stream:
            started.set()
            if engine == "genai":  # it holds the interpreter's lock: the thread may never get to run
                assert cancelled.wait(10)
        assert stream.stop_reason == "cancelled"
        assert 1 <= len(stream.token_ids) < 3900


def test_generations_do_not_disturb_each_other(model: Model) -> None:
    prompts = [PROMPT, "a mat", "naïve façade, the", "там"]
    expected = [model.generate(prompt, max_tokens=50, ignore_eos=True).read() for prompt in prompts]
    streams = [model.generate(prompt, max_tokens=50, ignore_eos=True) for prompt in prompts]
    for _ in range(10):  # interleaved at first
        for stream in streams:
            next(stream)
    threads = [threading.Thread(target=stream.read) for stream in streams]  # then at the same time
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [stream.text for stream in streams] == expected


def test_closed_model_starts_nothing_but_ends_what_runs(artifact: Path, engine: str) -> None:
    model = load(artifact, engine=engine)
    expected = model.generate(PROMPT, max_tokens=20).read()
    stream = model.generate(PROMPT, max_tokens=20)
    next(stream)
    model.close()
    assert stream.read() == expected
    with pytest.raises(GenerationError, match="the model is closed"):
        model.generate(PROMPT)


# Refusals, all of them before any work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; valid"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"max_tokens": 2.0}, "max_tokens is 2.0"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"stop": [""]}, "a stop string is ''"),
        ({"stop": ["x", 5]}, "a stop string is 5"),
        ({"stop_ids": [-1]}, "a stop id is -1"),
        ({"stop_ids": ["x"]}, "a stop id is 'x'"),
    ],
)
@pytest.mark.usefixtures("never_run")
def test_bad_options(model: Model, options: dict, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        model.generate(PROMPT, **options)
    with pytest.raises(GenerationError, match=message):
        model.chat(MESSAGES, **options)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "has no tokens"),
        ([], "has no tokens"),
        ([1, 300], "token id 300; valid: 0 to 299"),
        ([-1], "token id -1"),
        ([1.5], "valid: text, or a sequence of token ids"),
        ([[1, 2]], "valid: text, or a sequence of token ids"),
        (["the"], "valid: text, or a sequence of token ids"),
        ([True], "valid: text, or a sequence of token ids"),
        (None, "valid: text, or a sequence of token ids"),
        ("\udc00", "cannot be encoded"),
    ],
)
def test_bad_prompts(model: Model, prompt: object, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        model.generate(prompt)  # type: ignore[arg-type]


@pytest.mark.usefixtures("never_run")
def test_too_long_prompts(model: Model) -> None:
    for prompt, max_tokens in (([1] * 128, None), ([1] * 100, 29), ([1] * 200, 1)):
        with pytest.raises(
            ContextLimitError, match=f"has {len(prompt)} tokens and max_tokens is {max_tokens}"
        ):
            model.generate(prompt, max_tokens=max_tokens)
    model.generate([1] * 100, max_tokens=28)


# Loading


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"context": 129},
            ContextLimitError,
            "context is 129 tokens; the artifact was planned for at most 128",
        ),
        ({"context": 0}, GenerationError, "context is 0"),
        ({"context": "8"}, GenerationError, "context is '8'"),
        ({"threads": 0}, GenerationError, "threads is 0"),
        ({"provider": "tpu"}, IncompatibleRuntimeError, "'tpu' is unknown"),
    ],
)
def test_bad_load_options(
    artifact: Path, engine: str, options: dict, kind: type[QtoolError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        load(artifact, engine=engine, **options)


def test_shorter_context(artifact: Path, engine: str) -> None:
    with load(str(artifact), engine=engine, context=64, threads=2, provider="cpu") as model:
        assert (model.engine, model.context, model.threads, model.provider) == (engine, 64, 2, "cpu")
        stream = model.generate(PROMPT, ignore_eos=True)
        stream.read()
        assert stream.stats.prompt_tokens + len(stream.token_ids) == 64


def test_altered_files_are_found_on_request(artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(artifact, tmp_path / "copy"))
    data = (copy / "chat_template.jinja").read_bytes()
    (copy / "chat_template.jinja").write_bytes(data.swapcase())
    load(copy).close()
    with pytest.raises(ArtifactError, match=r"chat_template\.jinja has the SHA-256"):
        load(copy, verify=True)
    (copy / "chat_template.jinja").write_bytes(data + b"x")
    with pytest.raises(ArtifactError, match=r"chat_template\.jinja has"):
        load(copy)


@pytest.mark.parametrize(
    ("changes", "extra", "kind", "message"),
    [
        ({}, {"model.onnx": b"junk"}, ArtifactError, "model.onnx is not a model"),
        ({}, {"tokenizer.json": b"junk"}, ArtifactError, "tokenizer.json cannot be read"),
        (
            {"kv_cache": KvCache("in_place", "float32", 3, 2, 16, 1)},
            {},
            ArtifactError,
            r"lacks the inputs \['past_key_values.2.key'",
        ),
        (
            {"kv_cache": KvCache("in_place", "float32", 1, 2, 16, 1)},
            {},
            ArtifactError,
            r"has the inputs \['past_key_values.1.key', .* which this runtime cannot feed",
        ),
        (
            {"kv_cache": KvCache("paged", "float32", 2, 2, 16, 1)},
            {},
            ArtifactError,
            "'paged'; known: in_place",
        ),
        ({"kv_cache": KvCache("in_place", "int4", 2, 2, 16, 1)}, {}, ArtifactError, "'int4'; known: float32"),
        (
            {"kv_cache": KvCache("in_place", "int8", 2, 2, 16, 1)},
            {},
            ArtifactError,
            r"past_key_values.0.key is tensor\(float\); the manifest says int8",
        ),
    ],
)
def test_files_that_do_not_fit_the_manifest(write, changes, extra, kind, message) -> None:
    folder = write(changes, extra)
    with pytest.raises(kind, match=message):
        load(folder)


@pytest.mark.parametrize("pattern", ["past", "past.%s", "past.%d.%d", "past.%999999999d", "past.%%d"])
def test_hostile_name_patterns(artifact: Path, write, pattern: str) -> None:
    graph = replace(manifest.read(artifact).graph, past_key=pattern)
    with pytest.raises(ArtifactError, match="should have one %d"):
        load(write({"graph": graph}))


def test_broken_chat_template_does_not_stop_generate(write) -> None:
    with load(write(extra={"chat_template.jinja": b"{% for %}"})) as model:
        assert model.generate(PROMPT, max_tokens=2).read()
        with pytest.raises(ArtifactError, match="does not parse"):
            model.chat(MESSAGES)
