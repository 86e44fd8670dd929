"""Qwen2 and Qwen3 in plain numpy and float64: the reference that exported graphs are compared with.

Written from the papers, not from the exporter: rotation by complex numbers, one attention head at a time, no
cache. Slow, and easy to check by eye.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def logits(
    config: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], tokens: Sequence[int]
) -> Array:
    """Returns the logits of every position, of shape (len(tokens), vocab_size).

    Args:
        config: content of config.json.
        tensors: Hugging Face name -> values.
        tokens: token ids, which follow each other from position 0.
    """
    weights = {name: np.asarray(values, np.float64) for name, values in tensors.items()}
    epsilon = config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][list(tokens)]
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        layer = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        x = x + _attention(config, layer, _rms_norm(x, layer["input_layernorm.weight"], epsilon))
        hidden = _rms_norm(x, layer["post_attention_layernorm.weight"], epsilon)
        gate = hidden @ layer["mlp.gate_proj.weight"].T
        up = hidden @ layer["mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp.down_proj.weight"].T
    x = _rms_norm(x, weights["model.norm.weight"], epsilon)
    tied = config["tie_word_embeddings"] and "lm_head.weight" not in weights
    return x @ weights["model.embed_tokens.weight" if tied else "lm_head.weight"].T


def _attention(config: Mapping[str, Any], layer: Mapping[str, Array], hidden: Array) -> Array:
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads

    def project(name: str, count: int) -> Array:
        """Returns (count, sequence, size)."""
        y = hidden @ layer[f"self_attn.{name}_proj.weight"].T + layer.get(f"self_attn.{name}_proj.bias", 0.0)
        y = y.reshape(len(hidden), count, size).swapaxes(0, 1)
        norm = layer.get(f"self_attn.{name}_norm.weight")
        return y if norm is None else _rms_norm(y, norm, config["rms_norm_eps"])

    query = _rotate(project("q", heads), config["rope_theta"])
    key, value = _rotate(project("k", shared), config["rope_theta"]), project("v", shared)
    future = np.triu(np.ones((len(hidden), len(hidden)), bool), 1)
    attended = []
    for head in range(heads):
        group = head * shared // heads
        scores = query[head] @ key[group].T / np.sqrt(size)
        scores[future] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended.append(weights / weights.sum(axis=-1, keepdims=True) @ value[group])
    return np.concatenate(attended, axis=-1) @ layer["self_attn.o_proj.weight"].T


def _rotate(x: Array, theta: float) -> Array:
    """Turns each pair (x[i], x[i + size / 2]) by position * theta ** (-2 i / size)."""
    half = x.shape[-1] // 2
    angle = np.outer(np.arange(x.shape[-2]), theta ** -(np.arange(half) / half))
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weight
