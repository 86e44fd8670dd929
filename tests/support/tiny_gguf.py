"""Writes tiny random Qwen models as GGUF, with the gguf package's own writer and tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import quants

from support import tiny

ARCHITECTURES = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

Type = gguf.GGMLQuantizationType
Edit = Callable[[gguf.GGUFWriter], None]


@dataclass(frozen=True)
class TinyGguf:
    """What was written."""

    path: Path
    config: dict[str, Any]
    """The same model's config.json."""
    tensors: dict[str, tiny.FloatArray]
    """GGUF name -> the values as stored, that is after quantizing and dequantizing."""
    names: dict[str, str]
    """Hugging Face name -> GGUF name."""

    def values(self, name: str) -> tiny.FloatArray:
        """Returns the stored values of a tensor by its Hugging Face name."""
        return self.tensors[self.names[name]]


def write_tiny_gguf(
    path: Path,
    *,
    architecture: str = "qwen2",
    tied: bool = True,
    weight_type: Type = Type.Q8_0,
    types: Mapping[str, Type] | None = None,
    output: tiny.FloatArray | None = None,
    seed: int = 0,
    edit: Edit | None = None,
    **config: Any,
) -> TinyGguf:
    """Writes a model with random weights and a working tokenizer.

    Args:
        path: where to.
        architecture: "qwen2" or "qwen3".
        tied: whether embedding and LM head are one tensor; a tied file has no `output.weight`.
        weight_type: type of all matrices.
        types: Hugging Face name -> type, for those that differ.
        output: values of an `output.weight` that is written although the model is tied.
        seed: of the weights.
        edit: changes metadata before the file is written.
        config: fields of config.json that replace the usual ones.
    """
    fields = tiny.tiny_config(architecture, tied=tied) | config
    tensors = tiny.random_tensors(fields, seed)
    if output is not None:
        tensors["lm_head.weight"] = output
    writer = gguf.GGUFWriter(path, architecture)
    add_config(writer, fields)
    add_tokenizer(writer, fields)
    if edit is not None:
        edit(writer)
    name_map = gguf.get_tensor_name_map(ARCHITECTURES[architecture], fields["num_hidden_layers"])
    stored: dict[str, tiny.FloatArray] = {}
    names: dict[str, str] = {}
    for name, values in tensors.items():
        base, _, kind = name.rpartition(".")
        names[name] = f"{name_map.get_name(base)}.{kind}"
        target = (types or {}).get(name, weight_type if values.ndim > 1 else Type.F32)
        raw = quants.quantize(values, target)
        stored[names[name]] = quants.dequantize(raw, target)
        writer.add_tensor(names[name], raw, raw_dtype=target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TinyGguf(path, fields, stored, names)


def add_config(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """Adds the metadata that a converter writes for a configuration."""
    writer.add_name("A Tiny Model")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])


def add_tokenizer(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """Adds the tiny tokenizer, padded to the vocabulary size as converters do."""
    ids = tiny.token_ids()
    tokens = [*tiny.vocabulary(), *ids]
    types = [NORMAL] * len(tiny.vocabulary())
    types += [CONTROL if token in tiny.SPECIAL_TOKENS else USER_DEFINED for token in ids]
    while len(tokens) < config["vocab_size"]:
        types.append(UNUSED)
        tokens.append(f"[PAD{len(tokens)}]")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(tiny.MERGES)
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_bos_token_id(ids["<|endoftext|>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(tiny.CHAT_TEMPLATE)


def random_blocks(stored_type: Type, count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns random bytes of `count` blocks of a type; half-precision numbers in them may be anything."""
    size = gguf.GGML_QUANT_SIZES[stored_type][1]
    return np.random.default_rng(seed).integers(0, 256, count * size, dtype=np.uint8)
