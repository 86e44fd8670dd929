"""Writes a trained network as a Hugging Face checkpoint folder."""

# torch is not installed where the type checker usually runs.
# mypy: warn-unused-ignores=False

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found,unused-ignore]
from safetensors.torch import save_file
from tokenizers import Tokenizer

from qtool.nano.network import Qwen3, Shape
from qtool.nano.template import TEMPLATE_PATH
from qtool.nano.tokenizer import SPECIAL_TOKENS


def config(shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of ``config.json``."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "max_window_layers": shape.num_hidden_layers,
        "model_type": "qwen3",
        "num_attention_heads": shape.num_attention_heads,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of ``generation_config.json``: greedy, because every question has one right answer."""
    end, text_end = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    return {
        "bos_token_id": text_end,
        "do_sample": False,
        "eos_token_id": [end, text_end],
        "pad_token_id": text_end,
    }


def tokenizer_config(tokenizer: Tokenizer, shape: Shape) -> dict[str, Any]:
    """The fields of ``tokenizer_config.json``."""
    added = {
        str(number): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": shape.max_position_embeddings,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def round_to_bfloat16(network: Qwen3) -> None:
    """Give the network the values that the checkpoint can hold, so that what is measured is what ships."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).to(parameter.dtype))


def save_checkpoint(network: Qwen3, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights, configuration, tokenizer and template into ``folder`` (made if missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().to(torch.bfloat16).contiguous() for name, value in network.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    shape = network.shape
    for name, fields in (
        ("config.json", config(shape, tokenizer)),
        ("generation_config.json", generation_config(tokenizer)),
        ("tokenizer_config.json", tokenizer_config(tokenizer, shape)),
    ):
        (folder / name).write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(TEMPLATE_PATH, folder / TEMPLATE_PATH.name)
