"""What a model has read, saved and loaded again: as if it had never stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool_runtime import Model, load
from qtool_runtime.errors import GenerationError, KvFileError
from qtool_runtime.manifest import Manifest

from .conftest import TEMPLATE
from .decoder_graphs import TinyDecoder, write_artifact

KINDS = {
    "in_place": TinyDecoder(context=400),
    "in_place_half": TinyDecoder(half=True, context=400),
    "concatenate": TinyDecoder(update="concatenate", context=400),
}
PROMPT = np.random.default_rng(3).integers(0, 290, 150).tolist()
MESSAGES = [
    {"role": "system", "content": "the cat sat on the mat"},
    {"role": "user", "content": "the café"},
    {"role": "assistant", "content": "был там"},
]
GREEDY: Any = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory, tokenizer_json: bytes) -> Path:
    return write(tmp_path_factory.mktemp(request.param), KINDS[request.param], tokenizer_json)


def write(folder: Path, tiny: TinyDecoder, tokenizer_json: bytes) -> Path:
    extra = {"tokenizer.json": tokenizer_json, "chat_template.jinja": TEMPLATE.encode()}
    return write_artifact(folder, tiny, extra)


@pytest.mark.parametrize("used_before", [False, True])
def test_a_prompt_goes_on_after_a_restart(folder: Path, tmp_path: Path, used_before: bool) -> None:
    with load(folder, threads=1) as model:
        if used_before:
            model.generate(PROMPT, **GREEDY).read()
        assert model.save_prefix(tmp_path / "a.kv", PROMPT) == 150
        asked = [*PROMPT, 1, 2, 3]
        expected = model.generate(asked, **GREEDY)
        expected.read()
    with load(folder, threads=1) as model:
        saved = model.load_prefix(tmp_path / "a.kv")
        assert (saved.token_ids, saved.messages) == (PROMPT, [])
        stream = model.generate(asked, **GREEDY)
        stream.read()
        assert stream.token_ids == expected.token_ids
        assert stream.stats.cached_tokens == 150


def test_a_conversation_goes_on_after_a_restart(folder: Path, tmp_path: Path) -> None:
    question = {"role": "user", "content": "on the mat"}
    with load(folder, threads=1, prefix_memory=0) as model:
        count = model.save_prefix(tmp_path / "a.kv", MESSAGES)
        expected = model.chat([*MESSAGES, question], **GREEDY).read()
    with load(folder, threads=1) as model:
        saved = model.load_prefix(tmp_path / "a.kv")
        assert saved.messages == MESSAGES
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in MESSAGES)
        shared = model.tokenizer.encode(f"{text}<|im_start|>user\n")
        assert saved.token_ids == shared
        assert count == len(shared)
        stream = model.chat([*saved.messages, question], **GREEDY)
        assert stream.read() == expected
        assert stream.stats.cached_tokens == len(shared)


def test_a_conversation_that_has_not_begun_has_an_opening_too(folder: Path, tmp_path: Path) -> None:
    with load(folder, threads=1) as model:
        model.save_prefix(tmp_path / "a.kv", [])
        expected = model.tokenizer.encode("<|im_start|>user\n")
        assert model.load_prefix(tmp_path / "a.kv").token_ids == expected


def test_saving_does_not_change_the_memory(folder: Path, tmp_path: Path) -> None:
    with load(folder, threads=1) as model:
        model.save_prefix(tmp_path / "a.kv", PROMPT)
        assert model.prefix_memory.bytes == 0


def test_a_prompt_that_passes_the_context_is_saved_as_far_as_it_fits(folder: Path, tmp_path: Path) -> None:
    with load(folder, threads=1) as model:
        assert model.save_prefix(tmp_path / "a.kv", PROMPT * 3) == 400
        assert model.load_prefix(tmp_path / "a.kv").token_ids == (PROMPT * 3)[:400]
    with load(folder, threads=1, context=100) as model:  # a long file is of use all the same
        model.load_prefix(tmp_path / "a.kv")
        stream = model.generate(PROMPT[:70], **GREEDY)
        stream.read()
        assert stream.stats.cached_tokens == 68


def test_a_small_memory_takes_the_start_of_a_file(folder: Path, tmp_path: Path) -> None:
    with load(folder, threads=1) as model:
        model.save_prefix(tmp_path / "a.kv", PROMPT)
        limit = 100 * model.manifest.kv_cache.bytes_per_token
    with load(folder, threads=1, prefix_memory=limit) as model:
        model.load_prefix(tmp_path / "a.kv")
        assert model.prefix_memory.bytes == 64 * model.manifest.kv_cache.bytes_per_token
    with (
        load(folder, threads=1, prefix_memory=0) as model,
        pytest.raises(GenerationError, match="no prefix memory"),
    ):
        model.load_prefix(tmp_path / "a.kv")


def test_another_model_refuses_the_file(folder: Path, tmp_path: Path, tokenizer_json: bytes) -> None:
    with load(folder, threads=1) as model:
        model.save_prefix(tmp_path / "a.kv", PROMPT)
    other = write(tmp_path / "other", TinyDecoder(seed=1, context=400), tokenizer_json)
    with load(other, threads=1) as model, pytest.raises(KvFileError, match="is of another model"):
        model.load_prefix(tmp_path / "a.kv")


@pytest.mark.parametrize("prompt", ["", [5000], [{"role": 3}], [object()]])
def test_what_is_no_prompt_is_refused_and_nothing_written(model: Model, tmp_path: Path, prompt: Any) -> None:
    with pytest.raises(GenerationError):
        model.save_prefix(tmp_path / "a.kv", prompt)
    assert list(tmp_path.iterdir()) == []


def test_the_digest_is_of_graph_weights_and_provider(model: Model) -> None:
    manifest: Manifest = model.manifest
    digest = manifest.kv_digest("cpu")
    assert digest != manifest.kv_digest("cuda")
    for entry in manifest.files:
        files = tuple(replace(item, sha256="0" * 64) if item is entry else item for item in manifest.files)
        changed = replace(manifest, files=files).kv_digest("cpu") != digest
        assert changed == entry.path.startswith("model.onnx")
