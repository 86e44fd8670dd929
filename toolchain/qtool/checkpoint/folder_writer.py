"""Writes a checkpoint of any kind as a folder that transformers opens: config.json and model.safetensors."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

import numpy as np

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.record import Checkpoint

_TYPES = {"float32": ("F32", 4), "float16": ("F16", 2)}
_ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_ELEMENTS_AT_ONCE = 1 << 22


def write_folder(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Writes configuration and weights, some rows at a time. There is no tokenizer in the folder.

    Args:
        checkpoint: what to write.
        folder: an existing folder.
        dtype: "float32" or "float16"; quantized weights become what they stand for.

    Raises:
        SourceError: a weight cannot be read.
        OSError: the folder cannot be written.
    """
    document = json.dumps(_config_json(checkpoint.config, dtype), indent=2)
    (folder / "config.json").write_text(document, encoding="utf-8")
    name, size = _TYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in checkpoint.weights.values():
        start, end = end, end + prod(weight.shape) * size
        header[weight.name] = {"dtype": name, "shape": list(weight.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for weight in checkpoint.weights.values():
            step = max(weight.rows_at_once, _ELEMENTS_AT_ONCE // max(1, prod(weight.shape[1:])))
            for first in range(0, weight.shape[0], step):
                rows = weight.read(first, min(first + step, weight.shape[0]))
                file.write(np.ascontiguousarray(rows, dtype).data)


def _config_json(config: QwenConfig, dtype: str) -> dict[str, object]:
    """Returns the fields that transformers builds the network from."""
    return {
        "architectures": [_ARCHITECTURES[config.model_type]],
        "attention_bias": config.attention_bias,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": config.model_type,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pad_token_id": config.pad_token_id,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }
