"""Shared pieces of the runtime's tests: a tokenizer, a chat template and an artifact, all tiny and real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from qtool_runtime import Model, load
from qtool_runtime.engines import ENGINES
from qtool_runtime.manifest import Generation
from qtool_runtime.text import Tokenizer
from support.places import shared_folder

from .decoder_graphs import TinyDecoder, write_artifact

TEMPLATE = (
    "{%- for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
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


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Every engine, one after the other; those that are not installed are skipped."""
    if request.param == "genai":
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, or it sends some
        pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")
    return str(request.param)


@pytest.fixture(scope="session")
def model(artifact: Path, engine: str) -> Iterator[Model]:
    with load(artifact, threads=1, engine=engine) as loaded:
        yield loaded


@pytest.fixture
def never_run(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the forward pass away from the model's sessions: what is refused is refused before any."""
    monkeypatch.delattr(type(model.new_session()), "forward")


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[Model]:
    """The embedded model, which thinks and calls tools."""
    import qtool
    from qtool.nano import model_path

    if not (model_path() / "config.json").is_file():
        pytest.skip(f"the embedded model is not in {model_path()}")
    artifact = qtool.build(target="x64-int4", output=tmp_path_factory.mktemp("nano") / "artifact")
    with load(artifact.path, threads=1, engine=engine) as model:
        yield model


@pytest.fixture(scope="session")
def prompt() -> np.ndarray:
    """100 token ids, of the tiny decoders' vocabulary."""
    return np.random.default_rng(7).integers(0, 290, 100)


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The official tokenizers and templates beside the repository; skips the test where there are none."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("no shared folder beside the repository (set QTOOL_SHARED)")
    return folder / "real-models"
