"""The typed configuration, from the metadata of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.files import shown
from qtool.checkpoint.gguf_header import GgufArray, GgufHeader, GgufValue
from qtool.checkpoint.supported import check_model_type, unsupported
from qtool.errors import SourceError

MODEL, TOKENS = "tokenizer.ggml.model", "tokenizer.ggml.tokens"
END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
"""Metadata that name a token which ends an answer, the usual one first."""
CHATML_ENDS = ("<|im_end|>", "<|endoftext|>")
"""Ends of a ChatML vocabulary, in the order of the official generation_config.json. GGUF has room for one
of them only."""


def _found(value: object) -> str:
    return "missing" if value is None else shown(value)


def integer(metadata: Mapping[str, GgufValue], key: str, default: int | None = None, least: int = 1) -> int:
    """Returns a whole number of at least `least`; without a default it must be there."""
    value = metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SourceError(f"the metadata {key} is {_found(value)}; valid are whole numbers from {least}")
    return value


def number(metadata: Mapping[str, GgufValue], key: str) -> float:
    """Returns a positive number, which must be there."""
    value = metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise SourceError(f"the metadata {key} is {_found(value)}; valid are positive numbers")
    return float(value)


def text(metadata: Mapping[str, GgufValue], key: str, default: str | None = None) -> str:
    """Returns a string; without a default it must be there."""
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise SourceError(f"the metadata {key} is {_found(value)}; it must be a string")
    return value


def array(metadata: Mapping[str, GgufValue], key: str) -> GgufArray:
    """Returns an array, which must be there."""
    value = metadata.get(key)
    if not isinstance(value, GgufArray):
        raise SourceError(f"the metadata {key} is {_found(value)}; it must be an array")
    return value


def config_from_gguf(header: GgufHeader, *, tied: bool) -> QwenConfig:
    """Reads the configuration.

    Args:
        header: the file's header.
        tied: whether embedding and LM head are one tensor, which the metadata do not say.

    Raises:
        UnsupportedModelError: the architecture or one of its variants is not implemented.
        SourceError: a field is missing, of the wrong type, or out of range.
    """
    metadata = header.metadata
    architecture = text(metadata, "general.architecture")
    check_model_type(architecture, "general.architecture")
    _refuse_variants(metadata, architecture)

    def size(name: str, default: int | None = None) -> int:
        return integer(metadata, f"{architecture}.{name}", default)

    hidden, heads = size("embedding_length"), size("attention.head_count")
    key_value_heads = size("attention.head_count_kv", heads)
    if heads % key_value_heads:
        raise SourceError(
            f"{architecture}.attention.head_count is {heads}, "
            f"which is not a multiple of head_count_kv, {key_value_heads}"
        )
    if f"{architecture}.attention.key_length" not in metadata and hidden % heads:
        raise SourceError(
            f"{architecture}.embedding_length is {hidden}, which is not a multiple of the {heads} heads, "
            f"and there is no {architecture}.attention.key_length"
        )
    head_dim = size("attention.key_length", hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if size(name, head_dim) != head_dim:
            unsupported(f"{architecture}.{name}", size(name), f"{head_dim}, the length of a key")
    vocabulary = _vocabulary_size(header)
    return QwenConfig(
        model_type=architecture,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=size("feed_forward_length"),
        num_hidden_layers=size("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        rms_norm_eps=number(metadata, f"{architecture}.attention.layer_norm_rms_epsilon"),
        rope_theta=number(metadata, f"{architecture}.rope.freq_base"),
        max_position_embeddings=size("context_length"),
        tie_word_embeddings=tied,
        attention_bias=architecture == "qwen2",
        bos_token_id=_token(metadata, "tokenizer.ggml.bos_token_id", vocabulary),
        eos_token_ids=_end_tokens(metadata, vocabulary),
        pad_token_id=_token(metadata, "tokenizer.ggml.padding_token_id", vocabulary),
    )


def _refuse_variants(metadata: Mapping[str, GgufValue], architecture: str) -> None:
    """Refuses what would need other arithmetic, and files that hold only a part of a model."""
    if integer(metadata, "split.count", 1, least=0) > 1:
        raise SourceError(
            f"this file is one of {metadata['split.count']} parts of a split GGUF; only whole files are read",
            hint="join the parts first: llama-gguf-split --merge FIRST_PART OUTPUT.gguf",
        )
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none":
        unsupported(f"{architecture}.rope.scaling.type", scaling, '"none"', "stretched positions")
    context = integer(metadata, f"{architecture}.context_length")
    window = integer(metadata, f"{architecture}.attention.sliding_window", context, least=0)
    if 0 < window < context:
        unsupported(f"{architecture}.attention.sliding_window", window, "full attention")
    if metadata.get("general.type", "model") != "model":
        unsupported("general.type", metadata["general.type"], '"model"', "an adapter or a part of a model")


def _vocabulary_size(header: GgufHeader) -> int:
    """Returns the embedding's rows: often more than there are tokens, for the sake of aligned sizes."""
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise SourceError("the checkpoint lacks the tensor token_embd.weight, the embedding")
    return embedding.shape[0]


def _token(metadata: Mapping[str, GgufValue], key: str, vocabulary: int) -> int | None:
    """Returns a token id of the metadata, or None where it is not given."""
    if key not in metadata:
        return None
    value = integer(metadata, key, least=0)
    if value >= vocabulary:
        raise SourceError(f"the metadata {key} is {value}; valid are 0 to {vocabulary - 1}")
    return value


def _end_tokens(metadata: Mapping[str, GgufValue], vocabulary: int) -> tuple[int, ...]:
    """Returns the ids that end a generation: those of the metadata, then those every ChatML model has."""
    ends = [_token(metadata, key, vocabulary) for key in END_KEYS]
    tokens = metadata.get(TOKENS)
    if isinstance(tokens, GgufArray):
        chatml = tokens.indices_of(CHATML_ENDS)
        if None not in chatml:
            ends += chatml
    found = tuple(dict.fromkeys(end for end in ends if end is not None))
    if not found:
        raise SourceError(
            f"the metadata name no token that ends a text ({', '.join(END_KEYS)})",
            hint="convert the model again with a current convert_hf_to_gguf.py",
        )
    return found
