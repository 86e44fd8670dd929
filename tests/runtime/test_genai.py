"""The engine "genai" where it differs, and that its logits are ONNX Runtime's: real graphs, real packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qtool_runtime import genai, load, manifest
from qtool_runtime.engine import Cancelled, DeadlinePassed, EngineOptions
from qtool_runtime.errors import (
    ArtifactError,
    ContextLimitError,
    GenerationError,
    IncompatibleRuntimeError,
    MissingExtraError,
)
from qtool_runtime.genai import GenaiEngine, GenaiSession, open_genai
from qtool_runtime.onnx_engine import open_onnxruntime
from qtool_runtime.session import OnnxSession
from qtool_runtime.threads import Threads
from support.kernels import require_int8_kv_cache

from .decoder_graphs import TinyDecoder, write_artifact

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, or it sends some
pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")

KINDS = {
    "in_place": TinyDecoder(),
    "in_place_half": TinyDecoder(half=True),
    "in_place_int8": TinyDecoder(int8_cache=True),
    "concatenate": TinyDecoder(update="concatenate"),
    "concatenate_all_logits": TinyDecoder(update="concatenate", logits_rows=False),
}


def write_and_open(folder: Path, tiny: TinyDecoder, **changes: object) -> GenaiEngine:
    document = manifest.read(write_artifact(folder, tiny, **changes))
    return open_genai(folder, document, EngineOptions(None, Threads(1, 0), document.context))


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory) -> tuple[OnnxSession, GenaiSession]:
    """Sessions of both engines over one graph."""
    if KINDS[request.param].int8_cache:
        require_int8_kv_cache("genai")
    folder = write_artifact(tmp_path_factory.mktemp(request.param), KINDS[request.param])
    document = manifest.read(folder)
    engines = (
        opener(folder, document, EngineOptions(None, Threads(1, 0), document.context))
        for opener in (open_onnxruntime, open_genai)
    )
    ours, theirs = (engine.new_sessions(1)() for engine in engines)
    assert isinstance(ours, OnnxSession)
    assert isinstance(theirs, GenaiSession)
    return ours, theirs


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> GenaiEngine:
    return write_and_open(tmp_path_factory.mktemp("engine"), TinyDecoder(context=4000))


# Values


def test_logits_are_those_of_onnxruntime(both, prompt: np.ndarray) -> None:
    ours, theirs = both

    def compare(tokens) -> None:
        expected, found = ours.forward(tokens), theirs.forward(tokens)
        assert (found.shape, found.dtype) == ((1, 300), np.float32)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.ptp(found) > 5
        assert ours.length == theirs.length

    for session in both:
        session.truncate(0)
    compare(prompt[:90])  # more than a piece
    for token in prompt[90:]:
        compare([token])
    for length in (95, 64, 3, 0):  # back, and on from there
        for session in both:
            session.truncate(length)
        compare(prompt[length : length + 20])


def test_end_tokens_are_tokens_like_others(tmp_path: Path, prompt: np.ndarray) -> None:
    """onnxruntime-genai stops at them in its own loop."""
    end = int(prompt[3])
    generation = manifest.Generation(None, (end,), end, True, 0.7, 20, 0.8, 1.05)
    found = write_and_open(tmp_path / "end", TinyDecoder(), generation=generation).new_sessions(1)()
    plain = write_and_open(tmp_path / "plain", TinyDecoder()).new_sessions(1)()
    for token in prompt[:10]:
        np.testing.assert_array_equal(found.forward([token]), plain.forward([token]))


def test_the_cache_is_as_long_as_the_text(engine: GenaiEngine, prompt: np.ndarray) -> None:
    session = engine.new_sessions(1)()
    assert session.cache_bytes == 0
    session.forward(prompt)
    present = session._generator.get_output("present.0.key")
    assert present.shape == (1, 2, 100, 16)  # not the context of 4,000
    assert session.cache_bytes == 100 * 4 * 2 * 16 * 4
    session.truncate(10)
    assert session.cache_bytes == 10 * 4 * 2 * 16 * 4


# Misuse


@pytest.mark.parametrize("token", [-1, 300, 2**31, 2**40])
def test_ids_that_the_model_does_not_have(engine: GenaiEngine, token: int) -> None:
    session = engine.new_sessions(1)()
    with pytest.raises(GenerationError, match=f"token id {token} is not the model's; valid: 0 to 299"):
        session.forward([5, token])
    assert session.length == 0


def test_context_limit_is_checked_before_any_work(engine: GenaiEngine) -> None:
    session = engine.new_sessions(1)()
    session.forward([5] * 100)
    with pytest.raises(ContextLimitError, match=r"100 tokens are cached and 3901 more would pass .* 4000"):
        session.forward([5] * 3901)
    assert session.length == 100
    session.forward([5])


def test_what_the_engine_does_not_have(engine: GenaiEngine) -> None:
    session = engine.new_sessions(1)()
    assert session.row_limit == 1
    for tokens, rows in (([1, 2], 2), ([1, 2], 0), ([], 1)):
        with pytest.raises(GenerationError, match=f"{rows} rows .* {len(tokens)} tokens; valid: 1"):
            session.forward(tokens, rows)
    session.forward([1, 2])
    assert session.snapshot() is None
    with pytest.raises(GenerationError, match="cannot restore"):
        session.restore([])
    with pytest.raises(GenerationError, match="cannot truncate to 3 tokens; the cache holds 2"):
        session.truncate(3)


def test_closed_session(engine: GenaiEngine) -> None:
    session = engine.new_sessions(1)()
    session.forward([1])
    session.close()
    session.close()
    assert (session.length, session.cache_bytes) == (0, 0)
    with pytest.raises(GenerationError, match="closed"):
        session.forward([1])


def test_a_failed_pass_closes_the_session(tmp_path: Path) -> None:
    """The manifest's vocabulary is not the graph's, which shows in the first pass."""
    tiny = TinyDecoder()
    model = replace(manifest.read(write_artifact(tmp_path / "a", tiny)).model, vocab_size=999)
    session = write_and_open(tmp_path / "b", tiny, model=model).new_sessions(1)()
    with pytest.raises(GenerationError, match="onnxruntime-genai failed on tokens 0 to 2: "):
        session.forward([1, 2])
    with pytest.raises(GenerationError, match="closed"):
        session.forward([1])


# Cancelling, deadlines


def test_cancelled_session_runs_no_more(engine: GenaiEngine) -> None:
    session = engine.new_sessions(1)()
    session.forward([1])
    session.cancel()
    with pytest.raises(Cancelled):
        session.forward([1])
    assert session.length == 1


def test_cancel_stops_a_long_prompt_between_two_pieces(
    engine: GenaiEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genai, "PREFILL_CHUNK", 1)
    session, outcome = engine.new_sessions(1)(), []

    def read() -> None:
        try:
            session.forward([5] * 4000)
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    while session.length < 10 and thread.is_alive():
        time.sleep(0.001)
    session.cancel()
    thread.join()
    assert len(outcome) == 1
    assert 10 <= session.length < 4000


def test_deadline_is_looked_at_before_each_piece(engine: GenaiEngine) -> None:
    session = engine.new_sessions(1)()
    session.deadline = time.perf_counter() + 0.02
    with pytest.raises(DeadlinePassed):
        for _ in range(100):
            session.forward([5] * 640)
            session.truncate(0)
    assert session.length % 64 == 0


# Loading


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


def test_without_a_configuration(artifact: Path, copy: Path) -> None:
    document = manifest.read(artifact)
    files = tuple(entry for entry in document.files if entry.path != "genai_config.json")
    (copy / "manifest.json").write_text(replace(document, files=files).to_json(), "utf-8")
    with pytest.raises(IncompatibleRuntimeError, match=r"has no genai_config\.json") as caught:
        load(copy, engine="genai")
    assert caught.value.hint == 'Load it with engine="onnxruntime".'
    load(copy).close()


def test_another_configuration_is_not_read(copy: Path) -> None:
    """Of the same size, so that only its content tells: it names another model file."""
    path = copy / "genai_config.json"
    text = path.read_text()
    path.write_text(text.replace("model.onnx", "other.onnx"))
    with pytest.raises(ArtifactError, match=r"genai_config\.json is not what follows from the manifest"):
        load(copy, engine="genai")
    path.write_text(json.dumps({**json.loads(text), "more": 1}))
    with pytest.raises(ArtifactError, match=r"genai_config\.json has"):
        load(copy, engine="genai")


def test_only_the_configuration_and_the_model_are_read(copy: Path) -> None:
    """Whatever else lies in the folder, such as what onnxruntime-genai reads for models of other kinds."""
    document = manifest.read(copy)
    for name in ("manifest.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (copy / name).write_bytes(b"junk")
    assert open_genai(copy, document, EngineOptions(None, Threads(1, 0), 128)).new_sessions(1)().forward(
        [1]
    ).shape == (
        1,
        300,
    )


@pytest.mark.parametrize(
    ("extra", "changes", "kind", "message"),
    [
        ({"model.onnx": b"junk"}, {}, ArtifactError, "model.onnx is not a model"),
        ({"model.onnx": b""}, {}, IncompatibleRuntimeError, "cannot load model.onnx: "),
        (
            {},
            {"kv_cache": manifest.KvCache("paged", "float32", 2, 2, 16, 1)},
            ArtifactError,
            "'paged'; known: in_place",
        ),
    ],
)
def test_artifacts_that_it_cannot_run(tmp_path: Path, extra, changes, kind, message: str) -> None:
    folder = write_artifact(tmp_path, TinyDecoder(), extra, **changes)
    with pytest.raises(kind, match=message):
        open_genai(folder, manifest.read(folder), EngineOptions(None, Threads(1, 0), 128))


def test_an_int8_cache_needs_a_later_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai.import_genai(), "__version__", "0.15.2")
    write_and_open(tmp_path / "float", TinyDecoder())
    with pytest.raises(
        IncompatibleRuntimeError, match=r"KV cache is int8; onnxruntime-genai 0\.15\.2"
    ) as caught:
        write_and_open(tmp_path / "int8", TinyDecoder(int8_cache=True))
    assert "onnxruntime-genai>=0.16" in caught.value.hint


def test_an_unknown_architecture(tmp_path: Path) -> None:
    model = replace(manifest.read(write_artifact(tmp_path / "a", TinyDecoder())).model, architecture="rwkv")
    with pytest.raises(IncompatibleRuntimeError, match="Unsupported model_type") as caught:
        write_and_open(tmp_path / "b", TinyDecoder(), model=model)
    assert "onnxruntime" in caught.value.hint


def test_only_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact for another provider runs on the CPU where that is asked for."""
    graph = replace(manifest.read(write_artifact(tmp_path / "a", TinyDecoder())).graph, provider="cuda")
    folder = write_artifact(tmp_path / "b", TinyDecoder(), graph=graph)
    document = manifest.read(folder)
    session = open_genai(folder, document, EngineOptions("cpu", Threads(1, 0), 128)).new_sessions(1)()
    assert session.forward([1]).shape == (1, 300)
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(IncompatibleRuntimeError, match="genai runs on the provider cpu only; cuda") as caught:
        open_genai(folder, document, EngineOptions(None, Threads(1, 0), 128))
    assert 'provider="cpu"' in caught.value.hint


def test_threads_and_context_do_not_touch_the_artifact(artifact: Path) -> None:
    before = {path.name: path.read_bytes() for path in artifact.iterdir()}
    with load(artifact, engine="genai", threads=1, context=50) as model:
        session = model.new_session()
        assert (session.context, model.threads) == (50, 1)
        session.forward([5] * 50)
    assert {path.name: path.read_bytes() for path in artifact.iterdir()} == before


def test_a_missing_package_names_the_extra(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(MissingExtraError, match="onnxruntime-genai is not installed") as caught:
        load(artifact, engine="genai")
    assert "qtool-edge[genai]" in caught.value.hint
    load(artifact).close()


def test_an_unknown_engine_is_refused_before_anything_is_read() -> None:
    with pytest.raises(GenerationError, match="engine is 'llama'; valid: onnxruntime, genai"):
        load("no such folder", engine="llama")


SCRIPT = """
import os, sys
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
import qtool_runtime
model = qtool_runtime.load(sys.argv[1], engine="genai", threads=1)
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
stream = model.generate([1, 2, 3])
next(stream)
print("left open")
"""


def test_a_process_may_end_with_everything_open_and_has_sent_nothing(artifact: Path, tmp_path: Path) -> None:
    """onnxruntime-genai ends a process with an error where objects of its own are left over."""
    home = tmp_path / "home"  # telemetry would keep a device id and unsent events here
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "TMPDIR": str(home)}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(artifact)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "left open\n", "")
    assert list(home.rglob("*")) == []
