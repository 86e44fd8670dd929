"""What the comparisons with transformers share. They need an environment with torch and transformers 5."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from support.places import real_model

Reference = Callable[[Sequence[int]], npt.NDArray[np.float32]]
"""Token ids -> logits (tokens, vocab_size) as transformers computes them, without a cache."""

REAL_MODEL = "qwen2.5-coder-0.5b"


@pytest.fixture(scope="session")
def tolerance() -> float:
    """Largest distance (support/raw_session.py) between logits of two float32 implementations."""
    return 1e-4


@pytest.fixture(scope="session")
def reference_of() -> Callable[[Path], Reference]:
    """`reference_of(folder)`: the model of a Hugging Face folder in transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    def load(folder: Path) -> Reference:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        return as_reference(model)

    return load


def as_reference(model: Any) -> Reference:
    """Returns a transformers model as a function of token ids."""
    import torch

    model.eval()

    def logits(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            found = model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return np.asarray(found.numpy())

    return logits


@pytest.fixture(scope="session")
def transformers_major() -> int:
    """Main version of transformers: 5 writes `rope_parameters`."""
    return int(importlib.metadata.version("transformers").split(".")[0])


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """The real 0.5B checkpoint, or skip."""
    path = real_model(REAL_MODEL)
    if path is None:
        pytest.skip(f"there is no {REAL_MODEL}; set QTOOL_REAL_MODELS to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def edit_json() -> Callable[[Path, dict[str, object]], None]:
    """`edit_json(path, fields)`: replaces fields of a JSON file."""

    def edit(path: Path, fields: dict[str, object]) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **fields}), "utf-8")

    return edit
