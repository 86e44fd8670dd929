"""Sources of weights: a Hugging Face id, a safetensors folder, a GGUF file.

`open_checkpoint` gives a `Checkpoint`: the typed configuration, weights that are read by rows, and the
tokenizer's files. Nothing is executed and no tensor is read until somebody asks for its rows.

Where to look: `opening` decides what kind of source a string means; `folder`, `gguf_file` and `hub` open one
kind each; `layout` is the single table of tensor names and shapes.
"""

from __future__ import annotations

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.opening import open_checkpoint
from qtool.checkpoint.record import Checkpoint
from qtool.checkpoint.weight import Weight

__all__ = ["Checkpoint", "QwenConfig", "Weight", "open_checkpoint"]
