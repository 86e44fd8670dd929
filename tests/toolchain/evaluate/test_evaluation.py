"""Whole evaluations, of tiny models and of nano."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import qtool
from qtool.errors import ArtifactError, GenerationError, OutputError, SourceError
from qtool.evaluate.evaluation import evaluate
from qtool.evaluate.report import Report
from support.fixtures import Artifacts, Checkpoints
from support.tiny import write_tiny_checkpoint

TOKENS = 300  # more than a window of the tiny models, and not a whole number of them


@pytest.fixture(scope="module")
def report(tiny_artifact: Artifacts, tiny_checkpoint: Checkpoints) -> Report:
    artifacts = [tiny_artifact(target, "qwen3") for target in ("x64-fp32", "x64-int8", "x64-int4")]
    # The source is computed by ONNX Runtime's own kernels.
    return evaluate(artifacts, tiny_checkpoint("qwen3").folder, tokens=TOKENS, threads=1, kernels="off")


def test_float32_is_the_source_and_fewer_bits_are_farther_from_it(report: Report) -> None:
    float32, int8, int4 = report.artifacts
    assert float32.kl.mean == pytest.approx(0, abs=1e-9)
    assert float32.top1_agreement == 1
    assert float32.perplexity == pytest.approx(report.reference_perplexity, rel=1e-6)
    assert 0 < int8.kl.mean < int4.kl.mean / 10
    assert int8.top1_agreement > int4.top1_agreement > 0.3
    assert int8.kl.median < int8.kl.p99
    assert 0 < int8.kl.standard_error < int8.kl.mean
    assert int4.size < int8.size < float32.size


def test_a_report_says_how_it_was_measured(report: Report) -> None:
    assert (report.tokens, report.window) == (TOKENS, 256)  # the models read at most 256
    assert report.text == "qtool's own text"
    assert len(report.text_sha256) == 64
    assert [artifact.target for artifact in report.artifacts] == ["x64-fp32", "x64-int8", "x64-int4"]
    assert {artifact.provider for artifact in report.artifacts} == {"cpu"}
    assert {sum(artifact.histogram.tokens) for artifact in report.artifacts} == {TOKENS}
    assert report.reference_accuracy is None  # tasks are nano's
    document = json.loads(json.dumps(report.to_dict()))
    assert document["artifacts"][2]["kl"]["mean"] == report.artifacts[2].kl.mean


def test_an_artifact_in_float32_is_as_good_a_reference(report: Report, tiny_artifact: Artifacts) -> None:
    artifact, reference = tiny_artifact("x64-int4", "qwen3"), tiny_artifact("x64-fp32", "qwen3")
    again = evaluate([artifact], reference, tokens=TOKENS, threads=1, kernels="off")
    assert again.artifacts[0].kl == report.artifacts[2].kl
    assert again.artifacts[0].weight_errors == report.artifacts[2].weight_errors


def test_a_text_of_the_users(tiny_artifact: Artifacts, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat and looked at the window. " * 20)
    found = evaluate([tiny_artifact("x64-int8")], tiny_artifact("x64-fp32"), text=text, tokens=100)
    assert (found.text, found.tokens) == ("text.txt", 100)


def test_nano_is_also_asked_to_solve_tasks(tmp_path: Path) -> None:
    artifact = qtool.build(target="x64-int8", output=tmp_path / "nano").path
    found = evaluate([artifact], tokens=200)
    assert found.reference == "nano"
    assert found.text == "nano's held-out conversations"
    assert found.reference_accuracy is not None
    assert found.reference_accuracy.share > 0.9
    score = found.artifacts[0].accuracy
    assert score is not None
    assert abs(score.right - found.reference_accuracy.right) <= 3
    assert found.artifacts[0].kl.mean < 0.01


class TestRefusals:
    def test_a_source_of_another_vocabulary(self, tiny_artifact: Artifacts, tmp_path: Path) -> None:
        artifact = tiny_artifact("x64-int4")
        with pytest.raises(SourceError, match=r"its vocabulary has 320 tokens, nano has 1,024"):
            evaluate([artifact], None)
        other = write_tiny_checkpoint(tmp_path / "other").folder
        tokenizer = other / "tokenizer.json"
        document = json.loads(tokenizer.read_text())
        document["model"]["merges"] = document["model"]["merges"][:5]
        tokenizer.write_text(json.dumps(document))
        with pytest.raises(SourceError, match=r"its vocabulary has other tokens than other"):
            evaluate([artifact], other)

    def test_a_reference_that_has_lost_something_itself(self, tiny_artifact: Artifacts) -> None:
        with pytest.raises(SourceError, match=r"is no reference: it has attention in 8 bits") as caught:
            evaluate([tiny_artifact("x64-int4")], tiny_artifact("x64-int8"))
        assert "x64-fp32" in caught.value.hint

    def test_wrong_counts_and_folders_before_any_work(self, tiny_artifact: Artifacts, tmp_path: Path) -> None:
        with pytest.raises(GenerationError, match="tokens is 10; valid: counts from 64"):
            evaluate([tiny_artifact("x64-int4")], tiny_artifact("x64-fp32"), tokens=10)
        with pytest.raises(GenerationError, match="there is no artifact"):
            evaluate([], tiny_artifact("x64-fp32"))
        with pytest.raises(GenerationError, match="threads is 0"):
            evaluate([tiny_artifact("x64-int4")], tiny_artifact("x64-fp32"), threads=0)
        with pytest.raises(ArtifactError, match="is not an artifact"):
            evaluate([tmp_path], tiny_artifact("x64-fp32"))

    def test_a_disk_without_room(
        self, tiny_artifact: Artifacts, tiny_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(OutputError, match=r"of disk for a copy in float32; .* has 0 MB left") as caught:
            evaluate([tiny_artifact("x64-int4")], tiny_checkpoint().folder)
        assert "TMPDIR" in caught.value.hint


class TestTheCopyOfTheSource:
    @pytest.fixture(autouse=True)
    def temporary(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "temporary"
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        return folder

    def test_is_there_while_it_is_read_and_gone_afterwards(
        self, tiny_artifact: Artifacts, tiny_checkpoint: Checkpoints, temporary: Path
    ) -> None:
        seen: set[int] = set()
        evaluate(
            [tiny_artifact("x64-int4")],
            tiny_checkpoint().folder,
            tokens=100,
            progress=lambda stage, done, total: seen.add(len(list(temporary.iterdir()))),
        )
        assert seen == {0, 1}
        assert list(temporary.iterdir()) == []

    def test_is_gone_after_an_interrupt(
        self, tiny_artifact: Artifacts, tiny_checkpoint: Checkpoints, temporary: Path
    ) -> None:
        def interrupt(stage: str, done: int, total: int) -> None:
            if stage == "evaluate":
                assert len(list(temporary.iterdir())) == 1
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate([tiny_artifact("x64-int4")], tiny_checkpoint().folder, progress=interrupt)
        assert list(temporary.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_on_the_command_line_leaves_nothing(
    tiny_artifact: Artifacts, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    text = tmp_path / "long.txt"
    text.write_text("The cat sat on the mat and looked at the window. " * 20_000)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    # A child inherits "ignore SIGINT", which shells set for what they start in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "qtool", "eval", str(tiny_artifact("x64-int4"))),
                *("--against", str(tiny_checkpoint().folder), "--text", str(text), "--tokens", "200000"),
            ],
            env=os.environ | {"TMPDIR": str(temporary)},
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("evaluate"):
            break
    assert list(temporary.iterdir())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert list(temporary.iterdir()) == []


MEASURED = """
import sys
from qtool.bench.worker import memory
from qtool.evaluate.evaluation import evaluate
report = evaluate([sys.argv[1]], sys.argv[2], tokens=1000, threads=1)
print(report.peak_memory, memory()["peak"])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """With a vocabulary of 100,000, the logits of the text are 400 MB for each of the two models."""
    source = write_tiny_checkpoint(tmp_path / "wide", vocab_size=100_000).folder
    artifact = qtool.build(source, target="x64-int4", output=tmp_path / "int4").path
    reference = qtool.build(source, target="x64-fp32", output=tmp_path / "fp32").path
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(artifact), str(reference)],
        check=True,
        capture_output=True,
        text=True,
    )
    reported, peak = map(int, done.stdout.split())
    assert peak < 400e6  # of which 100 MB are Python and its packages, and 90 MB the models
    assert reported <= peak
