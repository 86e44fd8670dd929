"""Writes a GGUF file (or any source that qtool opens) as a float Hugging Face folder.

Other tools, such as the onnxruntime-genai builder and transformers, then start from exactly the weights that
qtool sees: the tensors go through qtool's own reader, one chunk of rows in memory at a time.

    python tests/bench/dequantize.py model-q4_k_m.gguf OUT

Weights are written as F32. A dequantized weight is a product of a float16 scale and small integers, which has
up to 11 + 8 significant bits and more: float16 and bfloat16 would round it once more, and a comparison would
measure that. `--dtype F16` halves the size where that does not matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from measure import MEGABYTE, argument_parser, finish, folder_bytes, say

from qtool.checkpoint import Checkpoint, QwenConfig, open_checkpoint

CHUNK_ELEMENTS = 1 << 22
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}
TORCH_NAMES = {"F32": "float32", "F16": "float16"}
ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def config_document(config: QwenConfig, dtype: str) -> dict[str, object]:
    """Returns the content of config.json."""
    document: dict[str, object] = {
        "architectures": [ARCHITECTURES[config.model_type]],
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids[0],
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": config.model_type,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": TORCH_NAMES[dtype],
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }
    if config.model_type == "qwen3":
        document["attention_bias"] = config.attention_bias
    return document


def write_folder(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files into a new folder."""
    folder.mkdir(parents=True)
    config = config_document(checkpoint.config, dtype)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name, content in checkpoint.tokenizer_files().items():
        (folder / name).write_bytes(content)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(_header(checkpoint, dtype))
        for chunk in _chunks(checkpoint):
            file.write(chunk.astype(DTYPES[dtype], copy=False).data)


def _header(checkpoint: Checkpoint, dtype: str) -> bytes:
    """Returns the length and the JSON with which a safetensors file begins."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, weight in checkpoint.weights.items():
        end = offset + prod(weight.shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(weight.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunks(checkpoint: Checkpoint) -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    for weight in checkpoint.weights.values():
        rows, *rest = weight.shape
        step = max(1, CHUNK_ELEMENTS // max(1, prod(rest)))
        for start in range(0, rows, step):
            yield np.ascontiguousarray(weight.read(start, min(start + step, rows)))


def main() -> None:
    """Reads the command line and writes the folder."""
    parser = argument_parser(__doc__)
    parser.add_argument("model", help="GGUF file, safetensors folder or Hugging Face id")
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="F32")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.model)
    write_folder(checkpoint, arguments.output, arguments.dtype)
    size = folder_bytes(arguments.output)
    say(f"{arguments.output}: {len(checkpoint.weights)} tensors, {size / MEGABYTE:.0f} MB")
    finish({"output": str(arguments.output), "bytes": size, "tensors": len(checkpoint.weights)})


if __name__ == "__main__":
    main()
