"""What cannot run is refused before a session is created, with what is there and what to do."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import onnxruntime
import pytest

from qtool_runtime.compatibility import PROVIDERS, check_compatibility
from qtool_runtime.errors import ArtifactError, IncompatibleRuntimeError, MissingExtraError
from qtool_runtime.manifest import Manifest, OperatorSet

from .decoder_graphs import TinyDecoder, build_graph, build_manifest


@pytest.fixture(scope="module")
def document() -> Manifest:
    return build_manifest(TinyDecoder(), build_graph(TinyDecoder()))


def with_graph(document: Manifest, **changes: str) -> Manifest:
    return replace(document, graph=replace(document.graph, **changes))


def test_the_artifacts_provider_is_chosen(document: Manifest) -> None:
    assert check_compatibility(document) is PROVIDERS["cpu"]
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize("minimum", ["1.0", "1.23", "1.20.1", onnxruntime.__version__])
def test_equal_and_newer_versions_do(document: Manifest, minimum: str) -> None:
    check_compatibility(with_graph(document, minimum_onnxruntime=minimum))


@pytest.mark.parametrize("minimum", ["99.0", "1.999", "1.999.0.dev20260101"])
def test_older_versions_do_not(document: Manifest, minimum: str) -> None:
    with pytest.raises(IncompatibleRuntimeError) as caught:
        check_compatibility(with_graph(document, minimum_onnxruntime=minimum))
    assert onnxruntime.__version__ in caught.value.message
    assert minimum in caught.value.message
    assert "pip install --upgrade" in caught.value.hint


def test_versions_are_compared_as_numbers(document: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.100.0")
    check_compatibility(with_graph(document, minimum_onnxruntime="1.23"))
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.0")
    with pytest.raises(IncompatibleRuntimeError):
        check_compatibility(with_graph(document, minimum_onnxruntime="1.23"))


@pytest.mark.parametrize("minimum", ["", "new", "x1.2", "1"])
def test_malformed_versions_are_the_artifacts_fault(document: Manifest, minimum: str) -> None:
    with pytest.raises(ArtifactError, match="is not a version"):
        check_compatibility(with_graph(document, minimum_onnxruntime=minimum))


@pytest.mark.parametrize("name", ["cuda", "directml", "webgpu"])
def test_no_fallback_from_a_provider_that_is_absent(document: Manifest, name: str) -> None:
    if PROVIDERS[name].onnxruntime_name in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has {name}")
    for arguments in ((with_graph(document, provider=name),), (document, name)):
        with pytest.raises(IncompatibleRuntimeError) as caught:
            check_compatibility(*arguments)
        assert PROVIDERS[name].onnxruntime_name in caught.value.message
        assert "CPUExecutionProvider" in caught.value.message
        assert 'provider="cpu"' in caught.value.hint
    assert check_compatibility(with_graph(document, provider=name), "cpu").name == "cpu"


def test_unknown_providers_are_refused(document: Manifest) -> None:
    for arguments in ((with_graph(document, provider="tpu"),), (document, "tpu")):
        with pytest.raises(
            IncompatibleRuntimeError, match="'tpu' is unknown; known: cpu, cuda, directml, webgpu"
        ):
            check_compatibility(*arguments)


def test_unknown_operator_domains_are_refused(document: Manifest) -> None:
    custom = replace(document, operators=(OperatorSet("my.company", 1, {"Magic": 2}),))
    with pytest.raises(
        IncompatibleRuntimeError, match=r"'my\.company' \(Magic\); onnxruntime has ai\.onnx, com"
    ):
        check_compatibility(custom)


def test_missing_onnxruntime_names_the_extra(document: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError) as caught:
        check_compatibility(document)
    assert caught.value.hint == 'Install it: pip install "qtool-edge[cpu]"'


def test_only_directml_reads_one_token_behind_others() -> None:
    assert [name for name, provider in PROVIDERS.items() if provider.reads_one_behind_others] == ["directml"]
