"""Writes tiny random Qwen checkpoints, in the form that the Hugging Face hub has them.

Needs numpy only: the safetensors bytes are made by hand, so that a test which reads them back with another
implementation really compares two.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

# fmt: off
MERGES = [
    "Ġ t", "h e", "i n", "r e", "o n", "Ġt he", "a n", "e r", "Ġ a", "o r", "e n", "Ġ w", "a t",
    "o u", "Ġ s", "e d", "i s", "Ġ o", "in g", "Ġ f", "Ġ c", "i t", "e s", "Ġ b", "a l", "Ġ m",
    "Ġ p", "an d", "Ġ d", "Ġa n", "Ġan d", "a r", "Ġt o", "Ġ in", "Ġo f", "Ġ h", "l l", "v e",
    "e ll", "H ell", "Hell o", "l d", "or ld", "Ġw orld",
]
# fmt: on
"""Merges of the tokenizer, in order."""
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED_TOKENS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
"""Found whole in a text, but not special."""

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TinyCheckpoint:
    """What was written."""

    folder: Path
    config: dict[str, Any]
    """Content of config.json."""
    tensors: dict[str, FloatArray]
    """Hugging Face name -> the values as stored, that is after rounding to the stored type."""


def write_tiny_checkpoint(
    folder: Path,
    *,
    architecture: str = "qwen2",
    tied: bool = True,
    dtype: str = "BF16",
    seed: int = 0,
    sharded: bool = False,
    **config: Any,
) -> TinyCheckpoint:
    """Writes a checkpoint with random weights and a working tokenizer.

    Args:
        folder: where to; made if it does not exist.
        architecture: "qwen2" or "qwen3" (which has query and key norms, and heads wider than hidden / heads).
        tied: whether embedding and LM head are one tensor.
        dtype: "BF16", "F16" or "F32".
        seed: of the weights.
        sharded: two weight files and an index, instead of one file.
        config: fields of config.json that replace the usual ones, such as `hidden_size=128`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields = tiny_config(architecture, tied=tied, dtype=dtype) | config
    tensors = random_tensors(fields, seed)
    stored = {name: _encode(values, dtype) for name, values in tensors.items()}
    blobs = {name: blob for name, (blob, _) in stored.items()}
    shapes = {name: values.shape for name, values in tensors.items()}
    if sharded:
        names = sorted(tensors)
        parts = {
            "model-00001-of-00002.safetensors": names[: len(names) // 2],
            "model-00002-of-00002.safetensors": names[len(names) // 2 :],
        }
        for file, part in parts.items():
            _write_safetensors(folder / file, part, shapes, blobs, dtype)
        index = {
            "metadata": {"total_size": sum(map(len, blobs.values()))},
            "weight_map": {name: file for file, part in parts.items() for name in part},
        }
        _write_json(folder / "model.safetensors.index.json", index)
    else:
        _write_safetensors(folder / "model.safetensors", sorted(tensors), shapes, blobs, dtype)
    _write_json(folder / "config.json", fields)
    for name, content in tokenizer_files(fields).items():
        _write_json(folder / name, content)
    return TinyCheckpoint(folder, fields, {name: values for name, (_, values) in stored.items()})


def tiny_config(architecture: str = "qwen2", *, tied: bool = True, dtype: str = "BF16") -> dict[str, Any]:
    """Returns a config.json as transformers 4 writes it."""
    class_name, head_dim = {"qwen2": ("Qwen2ForCausalLM", 16), "qwen3": ("Qwen3ForCausalLM", 32)}[
        architecture
    ]
    ids = token_ids()
    config = {
        "architectures": [class_name],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "max_window_layers": 2,
        "model_type": architecture,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype],
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 320,
    }
    if architecture == "qwen3":
        config |= {"attention_bias": False, "head_dim": head_dim, "rope_scaling": None}
    return config


def random_tensors(config: Mapping[str, Any], seed: int) -> dict[str, FloatArray]:
    """Returns weights whose logits differ enough between tokens for an arg-max to be stable."""
    random = np.random.default_rng(seed)
    hidden, wide, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    query, key = heads * head, config["num_key_value_heads"] * head

    def normal(*shape: int, scale: float) -> FloatArray:
        return (random.standard_normal(shape, np.float32) * np.float32(scale)).astype(np.float32)

    def linear(rows: int, columns: int) -> FloatArray:
        return normal(rows, columns, scale=columns**-0.5)

    def norm(size: int) -> FloatArray:
        return 1 + normal(size, scale=0.1)

    tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden, scale=0.5)}
    for index in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": norm(hidden),
            "self_attn.q_proj.weight": linear(query, hidden),
            "self_attn.k_proj.weight": linear(key, hidden),
            "self_attn.v_proj.weight": linear(key, hidden),
            "self_attn.o_proj.weight": linear(hidden, query),
            "post_attention_layernorm.weight": norm(hidden),
            "mlp.gate_proj.weight": linear(wide, hidden),
            "mlp.up_proj.weight": linear(wide, hidden),
            "mlp.down_proj.weight": linear(hidden, wide),
        }
        if config["model_type"] == "qwen2":
            layer |= {
                "self_attn.q_proj.bias": normal(query, scale=0.3),
                "self_attn.k_proj.bias": normal(key, scale=0.3),
                "self_attn.v_proj.bias": normal(key, scale=0.3),
            }
        else:
            layer |= {"self_attn.q_norm.weight": norm(head), "self_attn.k_norm.weight": norm(head)}
        tensors |= {f"model.layers.{index}.{name}": values for name, values in layer.items()}
    tensors["model.norm.weight"] = norm(hidden)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = normal(config["vocab_size"], hidden, scale=0.5)
    return tensors


def byte_characters() -> list[str]:
    """Returns the 256 characters that byte-level BPE writes bytes as, in the order of GPT-2's vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def vocabulary() -> list[str]:
    """Returns the tokens that merges make, by id."""
    tokens = byte_characters()
    for merge in MERGES:
        merged = merge.replace(" ", "")
        if merged not in tokens:
            tokens.append(merged)
    return tokens


def token_ids() -> dict[str, int]:
    """Returns the ids of special and added tokens, which follow the vocabulary."""
    first = len(vocabulary())
    return {token: first + index for index, token in enumerate(SPECIAL_TOKENS + ADDED_TOKENS)}


def tokenizer_files(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns tokenizer.json, tokenizer_config.json and generation_config.json, not yet as text."""
    ids = token_ids()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = {
        id_: {"content": token, **flags, "special": token in SPECIAL_TOKENS} for token, id_ in ids.items()
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id_, **token} for id_, token in added.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(vocabulary())},
            "merges": MERGES,
        },
    }
    tokenizer_config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(id_): token for id_, token in added.items()},
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": config["max_position_embeddings"],
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    generation = {
        "bos_token_id": ids["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "pad_token_id": ids["<|endoftext|>"],
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    }
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": tokenizer_config,
        "generation_config.json": generation,
    }


def _encode(values: FloatArray, dtype: str) -> tuple[bytes, FloatArray]:
    """Returns the stored bytes, and the values that they mean."""
    if dtype == "F32":
        return values.astype("<f4").tobytes(), values
    if dtype == "F16":
        half = values.astype("<f2")
        return half.tobytes(), half.astype(np.float32)
    bits = values.view(np.uint32)  # BF16: the upper half, rounded to nearest even
    upper = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return upper.tobytes(), (upper.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _write_safetensors(
    path: Path,
    names: list[str],
    shapes: Mapping[str, tuple[int, ...]],
    blobs: Mapping[str, bytes],
    dtype: str,
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + len(blobs[name])
        header[name] = {"dtype": dtype, "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs[name] for name in names))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
