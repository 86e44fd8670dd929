"""Which texts models are compared on, and which are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qtool.calibration.text import read_calibration_text
from qtool.errors import GenerationError, SourceError
from qtool.evaluate.text import check_count, evaluation_tokens, nano_text, own_text
from qtool.nano import model_path
from qtool.plain_text import MOST_BYTES, plain_text, read_plain_text
from qtool_runtime.text import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(model_path() / "tokenizer.json")


def test_our_own_text_is_long_enough_for_everything() -> None:
    text = own_text().text
    # Qwen's tokens have about four characters of such a text.
    assert len(text) / 4.5 > 3000
    for kind in ("```python", "<|im_start|>", "SELECT", "王小姐", "Großvater", "| iron |"):
        assert kind in text


def test_our_own_text_is_not_the_one_that_caches_are_calibrated_on() -> None:
    lines = {line for line in own_text().text.splitlines() if len(line) > 30}
    assert not lines & set(read_calibration_text(None).text.splitlines())


def test_the_text_for_nano_is_what_it_was_not_trained_on(tokenizer: Tokenizer) -> None:
    from qtool.nano.corpus import held_out

    text = nano_text()
    assert text == nano_text()
    assert all(example.answer in text.text for example in held_out(20))
    assert len(evaluation_tokens(text, tokenizer, None)) == 4096 + 1


def test_one_token_more_than_predictions(tokenizer: Tokenizer) -> None:
    text = own_text()
    ids = evaluation_tokens(text, tokenizer, 100)
    assert (len(ids), ids.dtype) == (101, np.int64)
    assert (ids == tokenizer.encode(text.text)[:101]).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"text\0text", "is binary: its byte 4 is zero"),
        (b"caf\xe9 au lait", "is not UTF-8: invalid continuation byte at byte 3"),
        ("Füße".encode("utf-16"), "is binary|is not UTF-8"),
    ],
)
def test_what_is_no_plain_text_is_refused_with_the_reason(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=reason) as caught:
        read_plain_text(path)
    assert "text.txt" in caught.value.message
    assert "UTF-8" in caught.value.hint


def test_files_that_cannot_be_texts(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        read_plain_text(tmp_path / "missing.txt")
    with pytest.raises(SourceError, match="is not a file"):
        read_plain_text(tmp_path)
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(SourceError, match=r"at most 67,108,864 are accepted"):
        read_plain_text(large)


def test_a_short_text_is_refused_with_what_is_needed(tokenizer: Tokenizer) -> None:
    short = plain_text("short.txt", b"turn on the kitchen light")
    with pytest.raises(SourceError, match=r"short\.txt is too short: it has \d+ tokens, 65 are needed"):
        evaluation_tokens(short, tokenizer, None)
    with pytest.raises(SourceError, match="100001 are needed to predict 100000") as caught:
        evaluation_tokens(own_text(), tokenizer, 100_000)
    assert "fewer --tokens" in caught.value.hint


def test_a_wrong_count_is_refused() -> None:
    check_count(None)
    check_count(64)
    with pytest.raises(GenerationError, match="tokens is 63; valid: counts from 64"):
        check_count(63)
