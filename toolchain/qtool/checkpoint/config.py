"""The typed model configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QwenConfig:
    """What a dense Qwen decoder is made of. All sizes are counts, not bytes."""

    model_type: str
    """"qwen2" (Qwen2, 2.5, Coder, Math) or "qwen3"."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    """True when the query, key and value projections have a bias (all of Qwen2)."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Ids that end a generation; from generation_config.json where it has them."""
    pad_token_id: int | None
