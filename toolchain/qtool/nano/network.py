"""A plain PyTorch Qwen3, small enough to read in one sitting; only the training script imports it.

Modules carry the names that Hugging Face checkpoints use, so that ``state_dict()`` already is the layout of
the exported file. Shapes in the docstrings: B batch, T tokens, D hidden size, H query heads, G key-value
heads, K head size, V vocabulary.
"""

# torch is not installed where the type checker usually runs, and then ``nn.Module`` is Any.
# mypy: disallow-subclassing-any=False, warn-unused-ignores=False, disallow-untyped-decorators=False

from __future__ import annotations

from dataclasses import dataclass

import torch  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor, nn  # type: ignore[import-not-found,unused-ignore]
from torch.nn import functional  # type: ignore[import-not-found,unused-ignore]


@dataclass(frozen=True)
class Shape:
    """The hyperparameters of the network, named as in a Hugging Face ``config.json``."""

    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096


class RootMeanSquareNorm(nn.Module):
    """``x / rms(x) * weight`` over the last axis, computed in float32 as Qwen3 does."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, values: Tensor) -> Tensor:
        """Normalize the last axis of ``values`` (any shape)."""
        return functional.rms_norm(values, (values.shape[-1],), self.weight.to(values.dtype), self.epsilon)


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables (T, K) of rotary position embedding, halves repeated ("rotate half")."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    doubled = torch.cat((angles, angles), dim=-1)
    return doubled.cos(), doubled.sin()


def rotate(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply rotary position embedding to ``values`` (B, heads, T, K) with tables (T, K)."""
    first, second = values.chunk(2, dim=-1)
    return values * cosine + torch.cat((-second, first), dim=-1) * sine


class Attention(nn.Module):
    """Causal grouped-query attention with a norm on each head's query and key."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        query, key_value = (
            count * shape.head_dim for count in (shape.num_attention_heads, shape.num_key_value_heads)
        )
        self.q_proj = nn.Linear(shape.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, key_value, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, key_value, bias=False)
        self.o_proj = nn.Linear(query, shape.hidden_size, bias=False)
        self.q_norm = RootMeanSquareNorm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = RootMeanSquareNorm(shape.head_dim, shape.rms_norm_eps)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Map ``hidden`` (B, T, D) to (B, T, D)."""
        batch, length, _ = hidden.shape
        heads = (batch, length, -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden).view(heads)).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden).view(heads)).transpose(1, 2)
        value = self.v_proj(hidden).view(heads).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(
            rotate(query, cosine, sine), rotate(key, cosine, sine), value, is_causal=True, enable_gqa=True
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class GatedMlp(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``hidden`` (B, T, D) to (B, T, D)."""
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class DecoderLayer(nn.Module):
    """Attention and MLP, each with a norm before it and a residual around it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = GatedMlp(shape)
        self.input_layernorm = RootMeanSquareNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RootMeanSquareNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Map ``hidden`` (B, T, D) to (B, T, D)."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cosine, sine)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Decoder(nn.Module):
    """The stack without the output layer (``model.*`` in a checkpoint)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RootMeanSquareNorm(shape.hidden_size, shape.rms_norm_eps)


class Qwen3(nn.Module):
    """Token ids in, hidden states or logits out. The output layer is the embedding (tied)."""

    def __init__(self, shape: Shape, longest: int = 1024) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        cosine, sine = rotary_tables(longest, shape.head_dim, shape.rope_theta)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """Small normal weights; the two projections into the residual are smaller with depth."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            spread = 0.02 if "embed" in name else parameter.shape[1] ** -0.5 * 0.6
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                spread /= (2 * self.shape.num_hidden_layers) ** 0.5
            nn.init.normal_(parameter, std=spread)

    def hidden_states(self, tokens: Tensor) -> Tensor:
        """Run ``tokens`` (B, T) and return the normalized hidden states (B, T, D)."""
        hidden = self.model.embed_tokens(tokens)
        length = tokens.shape[1]
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        cosine, sine = self.cosine[:length].to(dtype), self.sine[:length].to(dtype)
        hidden = hidden.to(dtype)
        for layer in self.model.layers:
            hidden = layer(hidden, cosine, sine)
        return self.model.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., D) to logits (..., V)."""
        return functional.linear(hidden, self.model.embed_tokens.weight)
