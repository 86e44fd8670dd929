"""The tokenizer that is rebuilt from a GGUF file's metadata, against the same tokenizer's own file."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from qtool.checkpoint import open_checkpoint
from qtool.errors import SourceError
from support.tiny import CHAT_TEMPLATE, tiny_config, token_ids, tokenizer_files, vocabulary
from support.tiny_gguf import CONTROL, NORMAL, UNUSED, USER_DEFINED, Edit, write_tiny_gguf


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "a.gguf").path
    opened = open_checkpoint(str(path))
    files = opened.tokenizer_files()
    assert opened.tokenizer_bytes == pytest.approx(sum(map(len, files.values())), rel=0.01)
    return files


@pytest.fixture(scope="module")
def original() -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer_files(tiny_config())["tokenizer.json"]))


@given(
    st.lists(st.one_of(st.text(), st.sampled_from([*token_ids(), "Hello", " world", "\r\n"]))).map("".join)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gets_the_ids_of_the_original(
    files: dict[str, bytes], original: Tokenizer, text: str
) -> None:
    rebuilt = Tokenizer.from_buffer(files["tokenizer.json"])
    ids = rebuilt.encode(text).ids
    assert ids == original.encode(text).ids
    assert rebuilt.decode(ids) == original.decode(ids)


def test_the_files_say_what_the_original_ones_say(files: dict[str, bytes]) -> None:
    expected = tokenizer_files(tiny_config())
    tokenizer = json.loads(files["tokenizer.json"])
    assert tokenizer == expected["tokenizer.json"]
    assert list(tokenizer["model"]["vocab"]) == sorted(tokenizer["model"]["vocab"])  # these are read faster
    config = json.loads(files["tokenizer_config.json"])
    assert config == expected["tokenizer_config.json"] | {"add_bos_token": False}
    ids = token_ids()
    assert json.loads(files["generation_config.json"]) == {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "pad_token_id": ids["<|endoftext|>"],
    }
    assert files["chat_template.jinja"].decode() == CHAT_TEMPLATE


def opened_with(tmp_path: Path, edit: Edit) -> dict[str, bytes]:
    opened = open_checkpoint(str(write_tiny_gguf(tmp_path / "a.gguf", edit=edit).path))
    files = opened.tokenizer_files()
    assert opened.tokenizer_bytes == pytest.approx(sum(map(len, files.values())), rel=0.03)
    return files


def replace(writer: gguf.GGUFWriter, key: str, value: object, kind: gguf.GGUFValueType) -> None:
    writer.kv_data[0][key] = gguf.GGUFValue(value, kind, gguf.GGUFValueType.STRING if kind == 9 else None)


def set_vocabulary(writer: gguf.GGUFWriter, tokens: list[str], types: list[int]) -> None:
    replace(writer, "tokenizer.ggml.tokens", tokens, gguf.GGUFValueType.ARRAY)
    writer.kv_data[0]["tokenizer.ggml.token_type"] = gguf.GGUFValue(
        types, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32
    )


def test_a_model_without_a_chat_template(tmp_path: Path) -> None:
    files = opened_with(tmp_path, lambda writer: writer.kv_data[0].pop("tokenizer.chat_template"))
    assert "chat_template.jinja" not in files
    assert "chat_template" not in json.loads(files["tokenizer_config.json"])


def test_recommended_sampling_goes_into_the_generation_config(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_float32("general.sampling.temp", 0.7)
        writer.add_float32("general.sampling.top_p", 0.8)
        writer.add_int32("general.sampling.top_k", 20)

    generation = json.loads(opened_with(tmp_path, edit)["generation_config.json"])
    assert generation["do_sample"] is True
    assert (generation["temperature"], generation["top_p"], generation["top_k"]) == (0.7, 0.8, 20)


def test_other_end_tokens_of_the_metadata_are_kept(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_eos_token_id(token_ids()["<|endoftext|>"])
        writer.add_eot_token_id(token_ids()["<|im_start|>"])

    ends = json.loads(opened_with(tmp_path, edit)["generation_config.json"])["eos_token_id"]
    assert ends == [300, 301, 302]


def test_added_tokens_keep_their_ids_when_there_are_gaps(tmp_path: Path) -> None:
    """The tokenizers library numbers added tokens itself, unless the model's vocabulary has them."""
    normal = vocabulary()
    tokens = [*normal, "[PAD]", "<|endoftext|>", "[PAD2]", "<|im_start|>", "<|im_end|>", "zz", "<think>"]
    types = [NORMAL] * len(normal) + [UNUSED, CONTROL, UNUSED, CONTROL, CONTROL, NORMAL, USER_DEFINED]

    def edit(writer: gguf.GGUFWriter) -> None:
        set_vocabulary(writer, tokens, types)
        writer.add_eos_token_id(tokens.index("<|im_end|>"))
        writer.add_pad_token_id(tokens.index("<|endoftext|>"))

    tokenizer = Tokenizer.from_buffer(opened_with(tmp_path, edit)["tokenizer.json"])
    for token, kind in zip(tokens, types, strict=True):
        assert tokenizer.token_to_id(token) == (None if kind == UNUSED else tokens.index(token))
    ids = tokenizer.encode("<|im_start|>Hello<think><|im_end|>").ids
    assert ids == [tokens.index(token) for token in ("<|im_start|>", "Hello", "<think>", "<|im_end|>")]
    assert tokenizer.decode(ids) == "Hello<think>"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["A", "A"], "'A' is in the vocabulary twice"),
        (["<think>", "<think>"], "'<think>' is in the vocabulary twice"),
        (["t", "日"], "not usable"),  # a merge needs the t that was replaced
    ],
)
def test_contradictions_in_the_vocabulary_are_refused(
    tmp_path: Path, tokens: list[str], message: str
) -> None:
    old, new = tokens

    def edit(writer: gguf.GGUFWriter) -> None:
        values = writer.kv_data[0]["tokenizer.ggml.tokens"].value
        position = values.index("B") if old != "t" else values.index("t")
        values[position] = new

    with pytest.raises(SourceError, match=message):
        opened_with(tmp_path, edit)


@pytest.mark.parametrize("merge", ["a", "a b c", "", "a b"])
def test_impossible_merges_are_refused(tmp_path: Path, merge: str) -> None:
    with pytest.raises(SourceError, match="not usable"):
        opened_with(
            tmp_path, lambda writer: writer.kv_data[0]["tokenizer.ggml.merges"].value.__setitem__(3, merge)
        )


def test_a_token_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf").path
    content = path.read_bytes()
    assert content.count(b"Hello") == 1
    position = content.index(b"Hello")
    path.write_bytes(content[:position] + b"H\xff" + content[position + 2 :])
    with pytest.raises(SourceError, match="not UTF-8"):
        open_checkpoint(str(path)).tokenizer_files()


def test_the_official_qwen3_tokenizer_survives_a_conversion(tmp_path: Path, shared: Path) -> None:
    """Its vocabulary as the usual converter writes it, around a tiny model; no real Qwen3 file is at hand."""
    official_file = shared / "real-models" / "tokenizers" / "qwen3" / "tokenizer.json"
    official = json.loads(official_file.read_text(encoding="utf-8"))
    tokens = [f"[PAD{index}]" for index in range(151936)]
    types = [UNUSED] * len(tokens)
    for token, index in official["model"]["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for token in official["added_tokens"]:
        looks_special = token["content"].startswith("<|")
        tokens[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if looks_special else USER_DEFINED

    def edit(writer: gguf.GGUFWriter) -> None:
        set_vocabulary(writer, tokens, types)
        merges = [" ".join(merge) for merge in official["model"]["merges"]]
        replace(writer, "tokenizer.ggml.merges", merges, gguf.GGUFValueType.ARRAY)
        writer.add_eos_token_id(151645)
        writer.add_bos_token_id(151643)
        writer.add_pad_token_id(151643)

    written = write_tiny_gguf(
        tmp_path / "a.gguf", architecture="qwen3", edit=edit, vocab_size=151936, num_hidden_layers=1
    )
    opened = open_checkpoint(str(written.path))
    assert opened.config.eos_token_ids == (151645, 151643)
    files = opened.tokenizer_files()
    rebuilt, original = (
        Tokenizer.from_buffer(files["tokenizer.json"]),
        Tokenizer.from_file(str(official_file)),
    )
    assert rebuilt.get_vocab() == original.get_vocab()
    text = (shared / "corpora" / "gutenberg-972-devils-dictionary.txt").read_text(encoding="utf-8")[:30_000]
    for sample in (
        text,
        "<|im_start|>user\n你好<|im_end|>\n<think>\n\n</think>\n<tool_response>x</tool_response>",
    ):
        ids = rebuilt.encode(sample).ids
        assert ids == original.encode(sample).ids
        assert rebuilt.decode(ids) == original.decode(ids)
    flags = {token["id"]: token["special"] for token in json.loads(files["tokenizer.json"])["added_tokens"]}
    assert flags == {token["id"]: token["special"] for token in official["added_tokens"]}
