"""What an opened source is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.quantization import Quantization
from qtool.checkpoint.weight import Weight


@dataclass(frozen=True)
class Checkpoint:
    """An opened source."""

    name: str
    """Short name for the default output folder, such as "Qwen2.5-0.5B-Instruct"."""
    kind: str
    """"huggingface", "safetensors" or "gguf"."""
    id: str
    """What identifies the source without its place on this machine: a hub id, or a folder or file name."""
    revision: str | None
    """Commit of the hub repository, where there is one."""
    config: QwenConfig
    weights: Mapping[str, Weight]
    """By Hugging Face names, such as "model.layers.0.self_attn.q_proj.weight"; Linear weights are
    (out_features, in_features). Exactly the names of `layout.weight_shapes(config)`."""
    tokenizer_bytes: int
    """Size of the tokenizer's files in the artifact: exact where they exist, else a close estimate."""
    tokenizer_files: Callable[[], dict[str, bytes]]
    """File name -> content of what an artifact ships: tokenizer.json, tokenizer_config.json,
    chat_template.jinja (where the model has one), generation_config.json."""
    sha256: Callable[[], dict[str, str]]
    """File name -> SHA-256 (hex) of the checkpoint's weight files; reads them whole."""
    quantization: Quantization | None = None
    """How some of the weights are quantized already, which are `QuantizedWeight`s."""
