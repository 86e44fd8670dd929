"""Checkpoints of any size whose weights are nowhere: rows of random numbers, made when they are asked for."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from qtool.checkpoint import Checkpoint, open_checkpoint
from qtool.checkpoint.layout import weight_shapes
from qtool.checkpoint.weight import Weight
from support.tiny import tiny_config, tokenizer_files

_POOL = 1 << 20
"""Random numbers; each row of a matrix is a piece of them that starts elsewhere."""
_STRIDE = 48_271
"""Between the pieces of consecutive rows; prime to the size of the pool, so that no piece comes twice."""


def random_checkpoint(folder: Path) -> Checkpoint:
    """Opens a folder with a config.json as if it had weights too.

    Matrices have a standard deviation of 1 / sqrt(columns), so that activations keep their magnitude; norms
    are 1, biases 0. The same name and shape always have the same values.
    """
    checkpoint = open_checkpoint(str(folder), configuration_only=True)
    pool = np.random.default_rng(0).standard_normal(2 * _POOL, np.float32)
    pool[_POOL:] = pool[:_POOL]
    weights = {name: _weight(name, shape, pool) for name, shape in weight_shapes(checkpoint.config).items()}
    documents = {
        name: json.dumps(content).encode()
        for name, content in tokenizer_files(tiny_config()).items()
        if name != "generation_config.json"
    }
    return replace(
        checkpoint,
        weights=weights,
        tokenizer_bytes=sum(map(len, documents.values())),
        tokenizer_files=lambda: dict(documents),
        sha256=lambda: {},
    )


def _weight(name: str, shape: tuple[int, ...], pool: np.ndarray) -> Weight:
    if len(shape) == 1:
        value = 0.0 if name.endswith(".bias") else 1.0
        return Weight(name, shape, "F32", lambda start, stop: np.full(stop - start, value, np.float32))
    if prod(shape[1:]) > _POOL:
        raise ValueError(f"{name}: a row of {shape} is longer than the pool")
    return Weight(name, shape, "F32", partial(_rows, pool, zlib.crc32(name.encode()), shape[1]))


def _rows(pool: np.ndarray, seed: int, columns: int, start: int, stop: int) -> np.ndarray:
    """Returns the rows [start, stop), whatever they are asked for with."""
    offsets = (seed + np.arange(start, stop) * _STRIDE) % _POOL
    pieces = np.lib.stride_tricks.sliding_window_view(pool, columns)[offsets]
    return pieces * np.float32(columns**-0.5)
