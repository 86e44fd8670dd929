"""The typed configuration: what is read, and that everything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtool.checkpoint.config_json import config_from_json
from qtool.errors import QtoolError, SourceError, UnsupportedModelError
from support.tiny import tiny_config

REFUSED_OFFICIAL = {
    "Qwen3-30B-A3B": ("model_type", "mixture of experts"),
    "Qwen2.5-VL-3B-Instruct": ("model_type", "vision-language"),
    "SmolLM2-135M-Instruct.from-gguf": ("model_type", "Llama"),
}


def test_every_official_configuration_is_read_or_refused_with_the_reason(shared: Path) -> None:
    folders = sorted((shared / "real-models" / "configs").iterdir())
    assert len(folders) >= 15
    for folder in folders:
        official = json.loads((folder / "config.json").read_text())
        generation_file = folder / "generation_config.json"
        generation = json.loads(generation_file.read_text()) if generation_file.exists() else None
        if folder.name in REFUSED_OFFICIAL:
            with pytest.raises(UnsupportedModelError) as caught:
                config_from_json(official, generation)
            for part in (*REFUSED_OFFICIAL[folder.name], official["model_type"], "qwen2", "qwen3"):
                assert part in caught.value.message
            assert caught.value.hint
            continue
        config = config_from_json(official, generation)
        for field in ("hidden_size", "num_hidden_layers", "vocab_size", "tie_word_embeddings", "rope_theta"):
            assert getattr(config, field) == official[field]
        assert config.head_dim == official.get("head_dim", config.hidden_size // config.num_attention_heads)
        assert config.attention_bias is (official["model_type"] == "qwen2")
        expected = (generation or official)["eos_token_id"]
        assert config.eos_token_ids == tuple(expected if isinstance(expected, list) else [expected])


def test_the_configuration_of_transformers_5_says_the_same() -> None:
    old = tiny_config("qwen3")
    new = dict(old)
    new["dtype"] = new.pop("torch_dtype")
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": new.pop("rope_theta")}
    new["layer_types"] = ["full_attention"] * 2
    del new["rope_scaling"]
    assert config_from_json(new) == config_from_json(old)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_generation_config_comes_first(architecture: str) -> None:
    generation = {"eos_token_id": [7, 5, 7], "bos_token_id": 3, "pad_token_id": 4}
    config = config_from_json(tiny_config(architecture), generation)
    assert (config.eos_token_ids, config.bos_token_id, config.pad_token_id) == ((7, 5), 3, 4)
    alone = config_from_json(tiny_config(architecture))
    assert (alone.eos_token_ids, alone.pad_token_id) == ((tiny_config()["eos_token_id"],), None)


def test_qwen2_may_have_heads_of_their_own_size() -> None:
    assert config_from_json(tiny_config("qwen2") | {"head_dim": 32}).head_dim == 32


UNSUPPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3", {"model_type": "qwen3_moe"}, "mixture of experts"),
    ("qwen3", {"model_type": "qwen3_next"}, "hybrid"),
    ("qwen2", {"model_type": "qwen2_vl"}, "vision-language"),
    ("qwen2", {"model_type": "gpt2"}, "gpt2"),
    ("qwen2", {"hidden_act": "gelu"}, "hidden_act"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
    ("qwen2", {"use_mrope": True}, "use_mrope"),
    ("qwen3", {"attention_bias": True}, "attention_bias"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
    ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
    ("qwen2", {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 2]}}, "rope_scaling"),
    (
        "qwen3",
        {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 1e6}},
        "rope_parameters",
    ),
    ("qwen3", {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters"),
    (
        "qwen3",
        {"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    ("qwen3", {"partial_rotary_factor": 0.25}, "partial_rotary_factor"),
    ("qwen2", {"torch_dtype": "int8"}, "torch_dtype"),
    ("qwen2", {"dtype": "float8_e4m3fn"}, "dtype"),
    ("qwen2", {"architectures": ["Qwen2ForSequenceClassification"]}, "architectures"),
]


@pytest.mark.parametrize(("architecture", "change", "named"), UNSUPPORTED)
def test_what_is_not_implemented_is_refused_by_name(
    architecture: str, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=named) as caught:
        config_from_json(tiny_config(architecture) | change)
    assert caught.value.hint


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": 64.0}, "hidden_size"),
    ({"hidden_size": "64"}, "hidden_size"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": 2**40}, "hidden_size"),
    ({"num_hidden_layers": -1}, "num_hidden_layers"),
    ({"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"head_dim": 15}, "head_dim"),
    ({"head_dim": 0}, "head_dim"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
    ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ({"rope_theta": True}, "rope_theta"),
    ({"rope_theta": 10**400}, "rope_theta"),
    ({"rope_theta": float("inf")}, "rope_theta"),
    ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, "rope_theta"),
    ({"rope_scaling": "yarn"}, "rope_scaling"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ({"use_sliding_window": "no"}, "use_sliding_window"),
    ({"layer_types": "full_attention"}, "layer_types"),
    ({"layer_types": ["full_attention"]}, "layer_types"),
    ({"vocab_size": None}, "vocab_size"),
    ({"eos_token_id": 320}, "eos_token_id"),
    ({"eos_token_id": []}, "eos_token_id"),
    ({"eos_token_id": [1, True]}, "eos_token_id"),
    ({"eos_token_id": None}, "eos_token_id"),
    ({"bos_token_id": -1}, "bos_token_id"),
    ({"model_type": 5}, "model_type"),
    ({"model_type": None}, "model_type"),
]


@pytest.mark.parametrize(("change", "named"), MALFORMED)
def test_ill_typed_fields_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(SourceError, match=named):
        config_from_json(tiny_config("qwen2") | change)


def test_every_needed_field_is_named_when_it_is_missing() -> None:
    complete = tiny_config("qwen3")
    optional = set()
    for field in complete:
        less = {key: value for key, value in complete.items() if key != field}
        try:
            config_from_json(less)
            optional.add(field)
        except SourceError as error:
            assert f"{field} is missing" in error.message
    needed = complete.keys() - optional
    assert needed == {
        *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta"),
        *("max_position_embeddings", "eos_token_id"),
    }


def test_a_hostile_value_is_shortened_and_escaped_in_the_message() -> None:
    with pytest.raises(QtoolError) as caught:
        config_from_json(tiny_config() | {"model_type": "\x1b[31m" + "x" * 10_000_000})
    assert len(caught.value.message) < 300
    assert "\x1b" not in caught.value.message
