"""Shared pieces of the runtime's tests: a tokenizer, a chat template and an artifact, all tiny and real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from qtool_runtime.graph import LoadedGraph, open_graph
from qtool_runtime.manifest import Generation, read
from qtool_runtime.model import Model, load
from qtool_runtime.text import Tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from .decoder_graphs import TinyDecoder, write_artifact

TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "the cat sat on the mat, the café — où? — был там; 今天天气很好 😀😀 naïve façade\n" * 3


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    """A byte-level BPE tokenizer like Qwen's, trained on one line: most tokens are single bytes."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("日 本", special=False)])
    return backend.to_str().encode()


@pytest.fixture(scope="session")
def tokenizer(tokenizer_json: bytes) -> Tokenizer:
    return Tokenizer(Backend.from_str(tokenizer_json.decode()))


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: bytes, tokenizer: Tokenizer) -> Path:
    """A whole artifact; read-only, for it is shared by all tests."""
    extra = {"tokenizer.json": tokenizer_json, "chat_template.jinja": TEMPLATE.encode()}
    eos = tokenizer.encode("<|im_end|>")
    generation = Generation(None, tuple(eos), None, True, 0.7, 20, 0.8, 1.05)
    folder = tmp_path_factory.mktemp("artifacts") / "tiny"
    return write_artifact(folder, TinyDecoder(), extra, generation=generation)


@pytest.fixture(scope="session")
def model(artifact: Path) -> Iterator[Model]:
    with load(artifact, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def prompt() -> np.ndarray:
    """100 token ids, of the tiny decoders' vocabulary."""
    return np.random.default_rng(7).integers(0, 290, 100)


def open_tiny(folder: Path, tiny: TinyDecoder) -> LoadedGraph:
    """Writes the decoder that `tiny` describes, and opens it as `load` does."""
    from qtool_runtime.compatibility import check_compatibility

    manifest = read(write_artifact(folder, tiny))
    return open_graph(folder, manifest, check_compatibility(manifest), 1, manifest.context)


def shared_folder(*parts: str) -> Path:
    """A folder of the material beside the repository ($QTOOL_SHARED); skips the test where there is none."""
    default = Path(__file__).parents[2].parent / "shared"
    folder = Path(os.environ.get("QTOOL_SHARED", default)).joinpath(*parts)
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (set QTOOL_SHARED)")
    return folder
