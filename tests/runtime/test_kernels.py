"""Which kernels compute is chosen when an artifact is loaded, and whatever goes wrong is said."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qtool_runtime import GenerationError, IncompatibleRuntimeError, MissingExtraError, load, manifest
from qtool_runtime.compatibility import PROVIDERS
from qtool_runtime.kernels import choose_kernels

STAND_IN = """
from pathlib import Path

__version__ = "9.9"

class SelfTestError(Exception):
    pass

def instruction_sets():
    return ("quick", "portable")

def self_test(name):
    pass

def supports(operator, attributes):
    return True

def select(name):
    pass

def library_path():
    return Path(__file__)
"""
"""A pack whose library is none: creating a session with it fails."""


@pytest.fixture
def no_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qtool_kernels", None)


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A package in place of qtool-kernels that does not work: its code is the test's parameter."""
    folder = tmp_path / "qtool_kernels"
    folder.mkdir()
    (folder / "__init__.py").write_text(request.param)
    monkeypatch.delitem(sys.modules, "qtool_kernels", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


BROKEN = [
    pytest.param('raise OSError("no such symbol")', "cannot be loaded: no such symbol", id="import"),
    pytest.param(
        STAND_IN + "\ndef self_test(name):\n    raise SelfTestError('2 is not 3')\n",
        "the self-test of qtool-kernels failed: 2 is not 3",
        id="self-test",
    ),
    pytest.param(STAND_IN, "cannot load model.onnx", id="library"),
    pytest.param(
        STAND_IN + "\ndef supports(operator, attributes):\n    return False\n",
        "has no operator that qtool-kernels computes",
        id="no operator",
    ),
]


@pytest.mark.usefixtures("no_pack")
class TestWithoutThePack:
    def test_it_is_onnxruntime_without_a_word(self, artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "qtool_runtime"), load(artifact, threads=1) as model:
            assert model.kernels.name == "onnxruntime"
            assert "not installed" in model.kernels.reason
            assert model.metrics.summary().kernels == "onnxruntime"
        assert not caplog.records

    def test_an_instruction_set_is_refused(self, artifact: Path) -> None:
        with pytest.raises(MissingExtraError, match="qtool-kernels is not installed") as error:
            load(artifact, kernels="avx2")
        assert "qtool-edge[kernels]" in str(error.value.hint)


def test_they_can_be_switched_off(artifact: Path) -> None:
    with load(artifact, threads=1, kernels="off") as model:
        assert (model.kernels.name, model.kernels.reason) == ("onnxruntime", "switched off")


@pytest.mark.parametrize(("pack", "reason"), BROKEN, indirect=["pack"])
@pytest.mark.usefixtures("pack")
class TestABrokenPack:
    def test_is_not_used_and_that_is_said(
        self, artifact: Path, caplog: pytest.LogCaptureFixture, reason: str
    ) -> None:
        with load(artifact, threads=1) as model:
            assert model.kernels.name == "onnxruntime"
            assert reason in model.kernels.reason
            assert model.generate([1, 2, 3], max_tokens=2, ignore_eos=True).read()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert reason in caplog.text

    def test_is_an_error_if_it_was_asked_for(self, artifact: Path, reason: str) -> None:
        with pytest.raises(IncompatibleRuntimeError) as error:
            load(artifact, kernels="quick")
        assert reason in error.value.message


@pytest.mark.parametrize("pack", [STAND_IN], indirect=True)
@pytest.mark.usefixtures("pack")
class TestWhatDoesNotFit:
    def test_an_unknown_name(self, artifact: Path) -> None:
        with pytest.raises(GenerationError, match="valid on this processor: auto, off, quick, portable"):
            load(artifact, kernels="mmx")

    def test_the_slow_reference_is_not_chosen_by_itself(
        self, artifact: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import qtool_kernels

        monkeypatch.setattr(qtool_kernels, "instruction_sets", lambda: ("portable",))
        kernels = choose_kernels("auto", manifest.read(artifact), PROVIDERS["cpu"])
        assert kernels.name == "onnxruntime"
        assert "nothing for this processor" in kernels.reason

    @pytest.mark.parametrize(
        ("provider", "dtype", "reason"),
        [
            ("cuda", "float16", "this artifact runs on cuda"),
            ("cpu", "float16", "this artifact's are float16"),
        ],
    )
    def test_artifacts_of_other_kinds_keep_their_kernels(
        self, artifact: Path, caplog: pytest.LogCaptureFixture, provider: str, dtype: str, reason: str
    ) -> None:
        document = manifest.read(artifact)
        document = replace(document, kv_cache=replace(document.kv_cache, dtype=dtype))
        kernels = choose_kernels("auto", document, PROVIDERS[provider])
        assert kernels.name == "onnxruntime"
        assert reason in kernels.reason
        assert not caplog.records
        with pytest.raises(IncompatibleRuntimeError, match=reason):
            choose_kernels("quick", document, PROVIDERS[provider])

    def test_artifacts_without_such_operators_too(self, artifact: Path) -> None:
        document = replace(manifest.read(artifact), operators=())
        kernels = choose_kernels("auto", document, PROVIDERS["cpu"])
        assert "none of the operators" in kernels.reason


def test_the_engine_genai_has_no_choice(artifact: Path) -> None:
    with pytest.raises(GenerationError, match="valid with the engine genai: auto, off"):
        load(artifact, engine="genai", kernels="avx2")
