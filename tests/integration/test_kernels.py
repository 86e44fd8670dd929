"""Artifacts on the kernel pack: near onnxruntime's own kernels, and the same bits however tokens are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qtool
import qtool_runtime
import qtool_targets
from qtool.passes.capabilities import capabilities_for
from qtool.quantize.choices import GROUP_SIZES
from qtool_runtime import Model, kernels
from qtool_runtime.errors import GenerationError
from support.places import real_model

pack = pytest.importorskip("qtool_kernels", reason="needs qtool-kernels (pip install ./runtime/kernels)")

PROMPTS = ["Turn on the kitchen light", "What is 7 + 5?", "Say this twice: one two three one two three"]
EDIT = "Print this code again with `total` renamed to `amount`:\n{}"
CODE = """def price(items):
    total = 0
    for item in items:
        total += item.price * item.count
    if total > 100:
        total -= total * 0.1
    return total
"""


@pytest.fixture(scope="module", params=["int4", "int8"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano") / request.param
    return qtool.build(target=f"x64-{request.param}", output=folder).path


@pytest.fixture(scope="module", params=pack.instruction_sets())
def model(artifact: Path, request: pytest.FixtureRequest) -> Iterator[Model]:
    with qtool_runtime.load(artifact, kernels=request.param, threads=2, prefix_memory=0) as loaded:
        assert loaded.kernels.name == request.param
        yield loaded


def logits(model: Model, pieces: list[np.ndarray]) -> np.ndarray:
    session = model.new_session()
    return np.concatenate([session.forward(piece, len(piece)).copy() for piece in pieces])


def text(model: Model) -> np.ndarray:
    prompt = "The kitchen light is on, and the heating in the bathroom is set to 21 degrees. " * 4
    return np.array(model.tokenizer.encode(prompt))


@pytest.mark.parametrize("size", GROUP_SIZES)
@pytest.mark.parametrize("bits", capabilities_for(qtool_targets.load("x64-int4")).matmul_bits)
def test_every_format_that_bits_can_be_spent_on_has_a_kernel(bits: int, size: int) -> None:
    assert pack.supports("MatMulNBits", {"bits": bits, "block_size": size})


@pytest.mark.skipif("amx" in pack.instruction_sets(), reason="this processor has AMX")
def test_amx_that_is_not_granted_is_an_error(artifact: Path) -> None:
    with pytest.raises(GenerationError, match="kernels is 'amx'; valid on this processor: auto, off"):
        qtool_runtime.load(artifact, kernels="amx")


def test_they_compute_what_onnxruntime_does(model: Model, artifact: Path) -> None:
    tokens = text(model)
    with qtool_runtime.load(artifact, kernels="off", prefix_memory=0) as own:
        expected = logits(own, [tokens])
    found = logits(model, [tokens])
    assert np.abs(found - expected).max() / np.abs(expected).max() < 0.04  # as in tolerances.toml
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.97


def test_fused_nodes_compute_what_their_parts_do(
    model: Model, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = text(model)
    monkeypatch.setattr(kernels, "fuse", lambda nodes, *_: nodes)
    with qtool_runtime.load(artifact, kernels=model.kernels.name, prefix_memory=0) as parts:
        expected = logits(parts, [tokens])
    found = logits(model, [tokens])
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_logits_are_the_same_bits_however_tokens_are_read(model: Model) -> None:
    tokens = text(model)
    once = logits(model, [tokens])
    cuts = [1, 2, 3, 7, 23, 24, 57]
    np.testing.assert_array_equal(logits(model, np.split(tokens, cuts)), once)


def test_and_with_any_number_of_threads(model: Model, artifact: Path) -> None:
    tokens = text(model)
    with qtool_runtime.load(artifact, kernels=model.kernels.name, threads=1, prefix_memory=0) as other:
        np.testing.assert_array_equal(logits(other, [tokens]), logits(model, [tokens]))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_with_drafts_are_the_same(model: Model, prompt: str) -> None:
    messages = [{"role": "user", "content": prompt}]
    plain, drafted = (
        model.chat(messages, temperature=0, max_tokens=48, ignore_eos=True, speculate=speculate)
        for speculate in (False, True)
    )
    assert plain.read() == drafted.read()
    assert plain.token_ids == drafted.token_ids
    assert drafted.stats.drafted_tokens > 0


def test_answers_in_a_batch_are_those_of_single_runs(model: Model) -> None:
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    together = model.chat_batch(conversations, temperature=0, max_tokens=32)
    alone = [model.chat(each, temperature=0, max_tokens=32) for each in conversations]
    assert together.read() == [stream.read() for stream in alone]


def test_where_a_self_test_fails_the_next_instruction_set_is_used(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    best, *others = pack.instruction_sets()
    if len(others) < 2:
        pytest.skip("this processor has one instruction set beside the portable one")
    self_test = pack.self_test

    def fails_for_the_best(name: str) -> None:
        if name == best:
            raise pack.SelfTestError(f"{name}: 2 is not 3")
        self_test(name)

    monkeypatch.setattr(pack, "self_test", fails_for_the_best)
    with qtool_runtime.load(artifact, prefix_memory=0) as loaded:
        assert loaded.kernels.name == others[0]
    (record,) = caplog.records
    assert f"failed: {best}: 2 is not 3; {others[0]} is used instead" in record.getMessage()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A real model in int4."""
    source = real_model("qwen2.5-coder-0.5b")
    if source is None:
        pytest.skip("no real checkpoint (QTOOL_REAL_MODELS)")
    if pack.instruction_sets() == ("portable",):
        pytest.skip("the portable kernels take minutes for this")
    artifact = qtool.build(source, target="x64-int4", output=tmp_path_factory.mktemp("real") / "artifact")
    with qtool_runtime.load(artifact.path, prefix_memory=0) as loaded:
        yield loaded


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("prompt", [EDIT.format(CODE), f"Explain each line of this code:\n{CODE}"])
def test_drafts_change_nothing_with_a_real_model(real: Model, prompt: str) -> None:
    """With int4 weights: onnxruntime's own kernels round otherwise for one row than for several."""
    assert real.kernels.name != "onnxruntime"
    messages = [{"role": "user", "content": prompt}]
    options = {"temperature": 0, "repetition_penalty": 1.0, "max_tokens": 120, "ignore_eos": True}
    plain, drafted = (real.chat(messages, speculate=speculate, **options) for speculate in (False, True))
    assert plain.read() == drafted.read()
    assert drafted.stats.accepted_tokens > 0
