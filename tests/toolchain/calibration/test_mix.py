"""Calibration texts that are probably the wrong ones are used, with a reason to think again."""

from __future__ import annotations

import base64
import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

import qtool
from qtool.calibration.mix import CalibrationWarning, doubts
from qtool.calibration.text import read_calibration_text
from qtool.cli import cli
from qtool.evaluate.text import nano_text
from qtool.nano import model_path

CHINESE = "今天天气很好，我们去公园散步吧。机器学习是人工智能的一个分支。她昨天买了三本新书。"  # noqa: RUF001


@pytest.fixture(scope="module")
def tokenizer_json() -> bytes:
    return (model_path() / "tokenizer.json").read_bytes()


def doubts_about(content: str, folder: Path, tokenizer_json: bytes) -> list[str]:
    path = folder / "mine.txt"
    path.write_text(content, encoding="utf-8")
    return doubts(read_calibration_text(path), tokenizer_json)


def test_nothing_speaks_against_the_text_that_ships_or_conversations(
    tmp_path: Path, tokenizer_json: bytes
) -> None:
    assert doubts(read_calibration_text(None), tokenizer_json) == []
    assert doubts_about(nano_text().text, tmp_path, tokenizer_json) == []


def test_text_that_the_vocabulary_has_no_words_for(tmp_path: Path, tokenizer_json: bytes) -> None:
    encoded = base64.b64encode(random.Random(0).randbytes(20_000)).decode()
    doubt, *_ = doubts_about(encoded, tmp_path, tokenizer_json)
    tokens = len(Tokenizer.from_buffer(tokenizer_json).encode(encoded).ids)
    assert f"mine.txt has {len(encoded) / tokens:.1f} bytes a token" in doubt


def test_text_that_repeats_itself(tmp_path: Path, tokenizer_json: bytes) -> None:
    (doubt,) = doubts_about("Turn on the kitchen light. " * 500, tmp_path, tokenizer_json)
    assert "different tokens: it says the same over and over" in doubt


def test_text_without_latin_letters(tmp_path: Path, tokenizer_json: bytes) -> None:
    found = doubts_about(CHINESE * 50, tmp_path, tokenizer_json)
    assert any("has 0% Latin letters, qtool's own has 98%" in doubt for doubt in found)
    mixed = doubts_about((CHINESE + nano_text().text[:200]) * 50, tmp_path, tokenizer_json)
    assert not any("Latin" in doubt for doubt in mixed)


def test_numbers_have_no_script(tmp_path: Path, tokenizer_json: bytes) -> None:
    found = doubts_about("3.14 15 92 65\n" * 200, tmp_path, tokenizer_json)
    assert found and not any("Latin" in doubt for doubt in found)


def test_a_build_warns_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Turn on the kitchen light. " * 500)
    options = {"target": "x64-int4", "recipe": "balanced", "calibration": tmp_path / "mine.txt"}
    with pytest.warns(CalibrationWarning, match="over and over"):
        artifact = qtool.build(output=tmp_path / "out", **options)
    assert artifact.manifest.calibration is not None


def test_the_command_prints_the_doubt_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Turn on the kitchen light. " * 500)
    command = ["build", "--target", "x64-int4", "--recipe", "balanced", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, [*command, "--calibration", str(tmp_path / "mine.txt")])
    assert result.exit_code == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1 and "mine.txt has only" in lines[0]
