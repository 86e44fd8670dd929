"""The shipped checkpoint: a Qwen3 in Hugging Face layout whose tokenizer can write every trained text."""

from __future__ import annotations

import json
import struct
from math import prod
from typing import Any

import pytest
from tokenizers import Tokenizer

from qtool.nano import model_path
from qtool.nano.corpus import held_out, train_examples
from qtool.nano.template import TEMPLATE_PATH, render

CONFIG: dict[str, Any] = json.loads((model_path() / "config.json").read_text(encoding="utf-8"))


def tensors() -> dict[str, dict[str, Any]]:
    """The header of the safetensors file: name to dtype, shape and place."""
    with (model_path() / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


def expected_shapes() -> dict[str, list[int]]:
    """The tensors of a tied Qwen3 with this configuration."""
    hidden, inner, head = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    query, key = CONFIG["num_attention_heads"] * head, CONFIG["num_key_value_heads"] * head
    shapes = {"model.embed_tokens.weight": [CONFIG["vocab_size"], hidden], "model.norm.weight": [hidden]}
    layer = {
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
        "self_attn.q_proj": [query, hidden],
        "self_attn.k_proj": [key, hidden],
        "self_attn.v_proj": [key, hidden],
        "self_attn.o_proj": [hidden, query],
        "self_attn.q_norm": [head],
        "self_attn.k_norm": [head],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
    }
    for number in range(CONFIG["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(model_path() / "tokenizer.json"))


def test_tensor_names_and_shapes() -> None:
    header = tensors()
    assert {name: entry["shape"] for name, entry in header.items()} == expected_shapes()
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}


def test_size() -> None:
    parameters = sum(prod(entry["shape"]) for entry in tensors().values())
    assert 1_000_000 <= parameters <= 3_000_000
    assert sum(path.stat().st_size for path in model_path().iterdir()) <= 6_000_000


def test_configuration() -> None:
    assert CONFIG["architectures"] == ["Qwen3ForCausalLM"]
    assert CONFIG["model_type"] == "qwen3"
    assert CONFIG["tie_word_embeddings"] is True
    assert CONFIG["rope_scaling"] is None
    assert CONFIG["use_sliding_window"] is False
    assert CONFIG["hidden_size"] % 128 == CONFIG["intermediate_size"] % 128 == 0
    assert CONFIG["head_dim"] != CONFIG["hidden_size"] // CONFIG["num_attention_heads"]


def test_token_ids_agree(tokenizer: Tokenizer) -> None:
    generation = json.loads((model_path() / "generation_config.json").read_text(encoding="utf-8"))
    end, padding = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    assert CONFIG["eos_token_id"] == end
    assert CONFIG["pad_token_id"] == CONFIG["bos_token_id"] == padding
    assert generation["eos_token_id"] == [end, padding]
    assert tokenizer.get_vocab_size() == CONFIG["vocab_size"]


def test_template_is_the_one_it_was_trained_with() -> None:
    shipped = (model_path() / "chat_template.jinja").read_text(encoding="utf-8")
    assert shipped == TEMPLATE_PATH.read_text(encoding="utf-8")


def test_texts_round_trip(tokenizer: Tokenizer) -> None:
    examples = [*train_examples(1, 4_000), *held_out(400)]
    for example in examples:
        text = render(example.messages, thinking=example.thinking, tools=example.tools) + example.completion
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["naïve Ωmega 日本語 🧪\t\r\n", " \n\n  x", "٣٤ ½"])
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("1234567890").ids) == 10


def test_markup_is_one_visible_token_each(tokenizer: Tokenizer) -> None:
    for text in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        assert len(tokenizer.encode(text).ids) == 1
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=True) == text
    assert tokenizer.decode([tokenizer.token_to_id("<|im_end|>")], skip_special_tokens=True) == ""


def test_some_characters_span_tokens(tokenizer: Tokenizer) -> None:
    """Streaming must hold back half a character; the model's own answers exercise that."""
    texts = [example.answer for example in held_out(400)]
    pieces = [tokenizer.decode([number]) for text in texts for number in tokenizer.encode(text).ids]
    assert any("\ufffd" in piece for piece in pieces)
