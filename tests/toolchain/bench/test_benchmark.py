"""The whole benchmark over a real artifact: qtool's runtime, and peers that run, fail or are not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from qtool.bench.benchmark import benchmark, token_limit
from qtool.bench.lengths import Lengths
from qtool.bench.peers import PEERS, Peers
from qtool.bench.rounds import Conditions, Contender, measure
from qtool.errors import EngineError, GenerationError, MissingExtraError, SourceError
from qtool_runtime import manifest
from support.fixtures import Artifacts, Checkpoints
from support.interpreters import failing, recorder

GENAI = "onnxruntime-genai"
SHORT = Lengths(prompts=(3, 8), depths=(0, 8), tokens=20)

posix = pytest.mark.skipif(sys.platform == "win32", reason="a script is the interpreter")


@pytest.fixture
def artifact(tiny_artifact: Artifacts) -> Path:
    return tiny_artifact("x64-int4", "qwen3")


def bench(artifact: Path, **options: Any) -> dict[str, Any]:
    return benchmark(artifact, **{"lengths": SHORT, "threads": 1, "rounds": 2} | options).to_dict()


def check_figure(figure: dict[str, Any], rounds: int) -> None:
    assert len(figure["rounds"]) == rounds
    assert 0 < figure["low"] <= figure["median"] <= figure["high"]


@pytest.mark.skipif(sys.platform != "linux", reason="all figures of memory")
def test_the_report_has_every_figure(artifact: Path) -> None:
    report = bench(artifact)
    engine = report["engines"].pop("qtool")
    assert engine.pop("version")
    assert engine.pop("model") == str(artifact)
    for key in ("import_seconds", "load_seconds", "start_seconds"):
        check_figure(engine.pop(key), 2)
    for when in ("loaded", "end"):
        for what in ("resident", "anonymous", "peak"):
            check_figure(engine["memory_bytes"][when].pop(what), 2)
    for length in ("3", "8"):
        rate, seconds = (
            engine["prompts"][length].pop(key) for key in ("tokens_per_second", "time_to_first_token_seconds")
        )
        check_figure(rate, 2)
        assert rate["rounds"] == [pytest.approx(int(length) / each, rel=1e-3) for each in seconds["rounds"]]
    for depth in ("0", "8"):
        rate = engine["decode"][depth].pop("tokens_per_second")
        assert [len(turns) for turns in rate.pop("turns")] == [1, 1]
        check_figure(rate, 2)
    assert engine == {
        "memory_bytes": {"loaded": {}, "end": {}},
        "prompts": {"3": {}, "8": {}},
        "decode": {"0": {}, "8": {}},
    }
    check_figure(report.pop("read_bandwidth"), 2)
    assert 0 < report.pop("bandwidth_fraction") < 1
    assert len(report.pop("load_average")) == 2
    assert report == {
        "artifact": str(artifact),
        "name": "tiny-qwen3",
        "target": "x64-int4",
        "provider": "cpu",
        "kernels": "onnxruntime",
        "threads": 1,
        "rounds": 2,
        "lengths": {"prompts": [3, 8], "depths": [0, 8], "tokens": 20, "turns": [20]},
        "engines": {},
        "ratios": {},
        "skipped": {},
        "weight_bytes_per_token": sum(group.bytes for group in manifest.read(artifact).quantization),
    }


def test_an_embedding_that_is_not_the_head_is_not_read_for_every_token(tiny_artifact: Artifacts) -> None:
    artifact = tiny_artifact("x64-int4", "qwen3", tied=False)
    sizes = {group.group: group.bytes for group in manifest.read(artifact).quantization}
    assert bench(artifact)["weight_bytes_per_token"] == sum(sizes.values()) - sizes["embedding"]


@posix
def test_engines_take_turns_with_the_same_tokens(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")
    python, log = recorder(tmp_path)
    engines = [
        Contender(engine, artifact, python, provider, required=True)
        for engine, provider in (("qtool", "cpu"), (GENAI, ""))
    ]
    measure(
        engines,
        Conditions(Lengths((4,), (4,), 32), threads=1, kernels="auto", token_limit=100),
        2,
        bandwidth=None,
        progress=lambda line: None,
    )
    requests = []
    for line in log.read_text().splitlines():
        engine, _, text = line.partition(" ")
        requests.append((engine, json.loads(text)))
    measured = [(engine, request) for engine, request in requests if {"prompt", "advance"} & request.keys()]
    names = ["qtool" if engine == "qtool" else "genai" for engine, _ in measured]
    # Two rounds: everyone reads the prompt, then everyone has a turn of 16 tokens, and another.
    assert names == ["qtool", "genai"] * 2 + ["genai", "qtool"] + ["genai", "qtool"] * 2 + ["qtool", "genai"]
    prompts = [request["prompt"] for _, request in measured if "prompt" in request]
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    assert all(0 <= token < 100 for prompt in prompts for token in prompt)
    assert [request.get("advance") for _, request in measured] == [None, None, 16, 16, 16, 16] * 2
    starts = [engine for engine, request in requests if "load" in request]
    assert starts == ["qtool", GENAI, "qtool", GENAI, GENAI, "qtool"]  # once before the rounds, once in each


def test_onnxruntime_genai_runs_the_artifact_itself(artifact: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")
    before = sorted(path.name for path in artifact.parent.iterdir())
    report = bench(artifact, peers=Peers(names=(GENAI,)))
    assert report["engines"][GENAI]["model"] == str(artifact)
    assert report["engines"].keys() == {"qtool", GENAI}
    ratios = report["ratios"][GENAI]
    for depth in ("0", "8"):
        ratio = ratios["decode"][depth]["tokens_per_second"]
        ours, theirs = (
            report["engines"][engine]["decode"][depth]["tokens_per_second"]["rounds"]
            for engine in ("qtool", GENAI)
        )
        expected = [one / other for one, other in zip(ours, theirs, strict=True)]  # one turn a round
        assert ratio["rounds"] == pytest.approx(expected, rel=1e-3)
    assert ratios.keys() == report["engines"]["qtool"].keys() - {"version", "model"}
    assert sorted(path.name for path in artifact.parent.iterdir()) == before


def test_an_artifact_of_another_provider_runs_on_the_cpu_if_asked_to(tiny_artifact: Artifacts) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")
    report = bench(tiny_artifact("directml-int4", "qwen3"), provider="cpu", peers=Peers(names=(GENAI,)))
    assert report["provider"] == "cpu"
    assert report["engines"].keys() == {"qtool", GENAI}


def test_peers_that_cannot_run_are_skipped_with_the_reason(artifact: Path, tmp_path: Path) -> None:
    pythons = {GENAI: str(tmp_path / "nowhere")}
    report = bench(artifact, peers=Peers(all=True, pythons=pythons))
    assert report["engines"].keys() == {"qtool"}
    assert report["skipped"].keys() == set(PEERS)
    assert f"{tmp_path / 'nowhere'} cannot be started" in report["skipped"][GENAI]
    assert "--gguf" in report["skipped"]["llama.cpp"]
    assert "--openvino or --gguf" in report["skipped"]["openvino-genai"]
    assert "--checkpoint" in report["skipped"]["transformers"]


@posix
@pytest.mark.parametrize(("request_", "start"), [("load", 1), ("prompt", 3), ("advance", 2), ("memory", 3)])
def test_a_peer_that_fails_on_the_way_is_left_out(
    artifact: Path, tmp_path: Path, request_: str, start: int
) -> None:
    """Started to be asked whether it is there, before the rounds, and in each."""
    lines: list[str] = []
    peers = Peers(all=True, pythons={GENAI: failing(tmp_path, request_, start=start)})
    report = bench(artifact, peers=peers, progress=lines.append)
    assert report["engines"].keys() == {"qtool"}
    assert len(report["engines"]["qtool"]["load_seconds"]["rounds"]) == 2
    reason = f"{GENAI}: its process ended with exit code 1:\nfirst line\nthe last words"
    assert report["skipped"][GENAI] == reason


class TestPeersByName:
    @posix
    def test_one_that_fails_is_an_error(self, artifact: Path, tmp_path: Path) -> None:
        peers = Peers(names=(GENAI,), pythons={GENAI: failing(tmp_path, "advance")})
        with pytest.raises(EngineError, match="the last words") as error:
            bench(artifact, peers=peers)
        assert error.value.exit_code == 12

    def test_one_that_is_not_installed_is_an_error(self, artifact: Path, tmp_path: Path) -> None:
        import venv

        venv.create(tmp_path / "empty", symlinks=sys.platform != "win32")
        python = tmp_path / "empty" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        with pytest.raises(MissingExtraError, match=f"{GENAI} is not installed for") as error:
            bench(artifact, peers=Peers(names=(GENAI,), pythons={GENAI: str(python)}))
        assert "pip install onnxruntime-genai" in error.value.hint

    def test_one_without_its_model_is_an_error(self, artifact: Path) -> None:
        with pytest.raises(SourceError, match=r"llama\.cpp needs the same model") as error:
            bench(artifact, peers=Peers(names=("llama.cpp",)))
        assert "--gguf" in error.value.hint

    def test_an_unknown_one_is_an_error(self) -> None:
        with pytest.raises(EngineError, match=r"'vllm' is unknown; known: onnxruntime-genai, llama\.cpp, "):
            Peers(names=("vllm",))


class TestModelsOfPeers:
    @pytest.mark.parametrize(
        ("kind", "place", "message"),
        [
            ("gguf", "nothing.gguf", "--gguf: there is no file"),
            ("gguf", "folder", "--gguf: there is no file"),
            ("gguf", "text", "is not a model"),
            ("gguf", "cut.gguf", r"cut\.gguf"),
            ("openvino", "folder", "it has no openvino_model.xml"),
            ("openvino", "text", "--openvino: there is no folder"),
            ("checkpoint", "nothing", "--checkpoint: there is no folder"),
            ("checkpoint", "folder", "is empty"),
        ],
    )
    def test_a_wrong_file_is_an_error(
        self, artifact: Path, tmp_path: Path, kind: str, place: str, message: str
    ) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "text").write_text("hello")
        (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
        with pytest.raises(SourceError, match=message):
            bench(artifact, peers=Peers(all=True, models={kind: tmp_path / place}))

    def test_another_model_is_an_error(self, artifact: Path, tiny_checkpoint: Checkpoints) -> None:
        folder = tiny_checkpoint("qwen2").folder
        with pytest.raises(SourceError, match="another model than the artifact: its head_dim is 16, not 32"):
            bench(artifact, peers=Peers(all=True, models={"checkpoint": folder}))


def test_lengths_are_clipped_to_the_context_and_it_is_said(artifact: Path) -> None:
    lines: list[str] = []
    lengths = Lengths((4, 10_000), (0, 10_000), 4)
    report = bench(artifact, lengths=lengths, rounds=1, progress=lines.append)
    assert report["lengths"] == {"prompts": [4, 255], "depths": [0, 251], "tokens": 4, "turns": [4]}
    assert lines[0] == "lengths are clipped to the artifact's context of 256 tokens"


def test_prompts_have_no_special_tokens(artifact: Path) -> None:
    document = manifest.read(artifact)
    assert token_limit(document) == min(document.generation.eos_token_ids)


def test_options_are_checked_before_anything_is_loaded(artifact: Path) -> None:
    for options in ({"rounds": 0}, {"threads": 0}, {"threads": 5000}):
        with pytest.raises(GenerationError, match=r"is 0|is 5000"):
            bench(artifact, **options)
