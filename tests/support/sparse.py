"""Checkpoints of a real model's size in no time and no space: every weight is a hole in a sparse file."""

from __future__ import annotations

import json
import os
import struct
from math import prod
from pathlib import Path
from typing import Any

from qtool.checkpoint.config_json import config_from_json
from qtool.checkpoint.layout import weight_shapes
from support.tiny import tiny_config, tokenizer_files


def write_sparse_checkpoint(
    folder: Path, *, architecture: str = "qwen2", tied: bool = True, **config: Any
) -> Path:
    """Writes a checkpoint whose weights are all zero, in float32.

    Args:
        folder: where to; made if it does not exist.
        architecture: "qwen2" or "qwen3".
        tied: whether embedding and LM head are one tensor.
        config: fields of config.json that replace those of `tiny_config`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields = tiny_config(architecture, tied=tied, dtype="F32") | config
    header, end = {}, 0
    for name, shape in weight_shapes(config_from_json(fields)).items():
        start, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)
    for name, content in {"config.json": fields, **tokenizer_files(fields)}.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
