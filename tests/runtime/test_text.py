"""Text in pieces must be the text at once, whatever the tokens and wherever the cuts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from qtool_runtime.errors import ArtifactError, GenerationError
from qtool_runtime.text import StopStrings, Tokenizer

TOKEN_IDS = st.lists(st.integers(0, 310), max_size=60)
"""Any order of single bytes, merged ones, special and added tokens, and ids that no token has."""


def stream(tokenizer: Tokenizer, token_ids: list[int], stops: StopStrings | None = None) -> list[str]:
    decoder, stops = tokenizer.new_decoder(), stops or StopStrings()
    pieces = [stops.push(decoder.push(token)) for token in token_ids]
    return [*pieces, stops.push(decoder.finish()) + stops.finish()]


@given(token_ids=TOKEN_IDS)
def test_pieces_of_any_tokens_join_to_the_text_decoded_at_once(tokenizer: Tokenizer, token_ids) -> None:
    assert "".join(stream(tokenizer, token_ids)) == tokenizer.decode(token_ids)


@given(text=st.text(max_size=40))
def test_pieces_of_valid_text_never_show_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text))
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


def test_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    tokens = [tokenizer._backend.token_to_id(character) for character in "ðŁĴ¯"]  # the bytes of 💯
    assert stream(tokenizer, tokens) == ["", "", "", "💯", ""]
    assert stream(tokenizer, tokens[:3]) == ["", "", "", "\ufffd"]


def test_special_tokens_have_no_text_but_added_ones_do(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("<|im_start|><think>日 本<|im_end|>")
    assert len(tokens) == 4
    assert stream(tokenizer, tokens) == ["", "<think>", "日 本", "", ""]


@given(
    text=st.lists(st.sampled_from(["<|im_end|>", "<think>", "日 本", "e\u0301", "the cat", "\u212b", " "]))
)
def test_exact_encoding_keeps_every_byte(tokenizer: Tokenizer, text: list[str]) -> None:
    """Names of control tokens are text, added tokens are whole."""
    whole = "".join(text)
    ids = tokenizer.encode_exact(whole)
    assert b"".join(map(tokenizer.token_bytes, ids)) == whole.encode()
    if "<|im_end|>" not in whole:
        assert ids == tokenizer.encode(whole)


def test_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.single_token("<think>") == tokenizer.encode("<think>")[0]
    assert tokenizer.single_token("<think>a") is tokenizer.single_token("") is None


def first_stop(text: str, stops: list[str]) -> str:
    """The slow definition: the stop string that ends first; of several there, the longest."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)]
    return text


@given(
    pieces=st.lists(st.text("abc", max_size=5), max_size=12),
    words=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
)
@example(pieces=["ab", "c"], words=["abc", "b"])
@example(pieces=["aab", "aac"], words=["aabaac", "ba"])
def test_stop_strings_end_the_text_wherever_it_is_cut(pieces: list[str], words: list[str]) -> None:
    stops, text, passed = StopStrings(words), "".join(pieces), ""
    expected = first_stop(text, words)
    for index, piece in enumerate(pieces):
        passed += stops.push(piece)
        assert expected.startswith(passed)
        if not stops.found:
            held = "".join(pieces[: index + 1])[len(passed) :]
            assert not held or any(word.startswith(held) for word in words)  # nothing is kept back needlessly
    passed += stops.finish()
    assert passed == expected
    assert stops.found == any(word in text for word in words)


@given(token_ids=TOKEN_IDS, data=st.data())
def test_stop_strings_may_span_tokens(tokenizer: Tokenizer, token_ids, data) -> None:
    text = tokenizer.decode(token_ids)
    starts = st.integers(0, max(len(text) - 1, 0))
    start, length = data.draw(starts), data.draw(st.integers(1, 6))
    words = [word for word in (text[start : start + length], "zz") if word]
    assert "".join(stream(tokenizer, token_ids, StopStrings(words))) == first_stop(text, words)


@pytest.mark.parametrize("bad", ["", 5, None, b"x"])
def test_bad_stop_strings_are_refused(bad: object) -> None:
    with pytest.raises(GenerationError, match="a stop string is"):
        StopStrings(["fine", bad])  # type: ignore[list-item]


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(GenerationError, match="cannot be encoded"):
        tokenizer.encode("half \ud83d")


def test_other_kinds_of_tokenizer_are_refused(tmp_path: Path) -> None:
    backend = Backend(models.BPE())
    backend.decoder = decoders.Metaspace()  # type: ignore[assignment]
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    with pytest.raises(ArtifactError, match="decoder Metaspace"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize("content", ["", "{}", "[1", '{"model": 5}'])
def test_malformed_tokenizers_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_file(path)


@pytest.fixture(scope="module", params=["qwen2.5", "qwen3"])
def official(request: pytest.FixtureRequest, real_models: Path) -> Tokenizer:
    return Tokenizer.from_file(real_models / "tokenizers" / request.param / "tokenizer.json")


@given(token_ids=st.lists(st.integers(0, 151_935), max_size=30))
def test_official_tokenizers_stream_any_tokens(official: Tokenizer, token_ids: list[int]) -> None:
    assert "".join(stream(official, token_ids)) == official.decode(token_ids)


def test_official_tokenizers_stream_every_token(official: Tokenizer) -> None:
    token_ids = list(range(151_936))
    assert "".join(stream(official, token_ids)) == official.decode(token_ids)


def test_official_tokenizers_round_trip_text(official: Tokenizer) -> None:
    text = "def café():\n\treturn '今天天气很好 😀' # ½ Ωμέγα\r\n<think>\n</think>"
    assert "".join(stream(official, official.encode(text))) == text


def test_official_tokenizers_encode_exactly(official: Tokenizer) -> None:
    text = "def café():\n\treturn 'e\u0301 天气 😀'\r\n<think> <|im_end|> </tool_call>"
    ids = official.encode_exact(text)
    assert b"".join(map(official.token_bytes, ids)) == text.encode()
    plain = text.replace("e\u0301", "é").replace("<|im_end|>", "")
    assert official.encode_exact(plain) == official.encode(plain)
