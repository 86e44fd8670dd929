"""The text that a model is calibrated on: the one that ships, and one of the user's."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from qtool.calibration.text import FEWEST_TOKENS, MOST_TOKENS, WINDOW, read_calibration_text
from qtool.errors import SourceError
from support.fixtures import Checkpoints


@pytest.fixture(scope="module")
def tokenizer_json(tiny_checkpoint: Checkpoints) -> bytes:
    return (tiny_checkpoint().folder / "tokenizer.json").read_bytes()


def test_the_text_that_ships_has_many_kinds_of_text() -> None:
    text = read_calibration_text(None)
    content = (resources.files("qtool.calibration") / "text.txt").read_bytes()
    assert text.sha256 == hashlib.sha256(content).hexdigest()
    for part in ("<|im_start|>user\n", "```python\n", "\\int_", "机器学习", "機率", "¿", "ж", "ك"):
        assert part in text.text, part


def test_windows_are_the_tokens_in_order(tmp_path: Path, tokenizer_json: bytes) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("<|im_start|>user\nIl était une fois un été.<|im_end|>\n".encode() * 40)
    text = read_calibration_text(path)
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    expected = Tokenizer.from_buffer(tokenizer_json).encode(text.text, add_special_tokens=False).ids
    for context, length in ((100, 100), (10_000, WINDOW)):
        windows = text.windows(tokenizer_json, context)
        assert windows.shape[1] == length
        assert 0 <= len(expected) - windows.size < length  # the end that fills no window is not used
        assert windows.ravel().tolist() == expected[: windows.size]


def test_no_more_than_the_first_tokens_are_read(tmp_path: Path, tokenizer_json: bytes) -> None:
    path = tmp_path / "long.txt"
    path.write_text("abc xyz " * 100_000)
    windows = read_calibration_text(path).windows(tokenizer_json, 10_000)
    assert windows.size == MOST_TOKENS


def test_too_little_text_is_refused(tmp_path: Path, tokenizer_json: bytes) -> None:
    path = tmp_path / "short.txt"
    path.write_text("a" * (FEWEST_TOKENS // 8))
    text = read_calibration_text(path)
    with pytest.raises(SourceError, match=rf"short\.txt has \d+ tokens; it takes {FEWEST_TOKENS} or more"):
        text.windows(tokenizer_json, 512)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    with pytest.raises(SourceError, match=r"the calibration text 'latin' is not UTF-8: .* at byte 0"):
        read_calibration_text(tmp_path / "latin")
    (tmp_path / "empty").write_bytes(b"\n")
    with pytest.raises(SourceError, match="the calibration text 'empty' is empty"):
        read_calibration_text(tmp_path / "empty")
    with pytest.raises(SourceError, match="is not a file"):
        read_calibration_text(tmp_path)
    with pytest.raises(SourceError, match="No such file"):
        read_calibration_text(tmp_path / "none.txt")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(SourceError, match="has 1,073,741,824 bytes; at most"):
        read_calibration_text(tmp_path / "large")
