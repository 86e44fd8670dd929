"""The typed configuration, from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.gguf_header import GgufHeader, GgufValue
from qtool.checkpoint.gguf_metadata import HINT, integer, number, text
from qtool.checkpoint.gguf_vocabulary import GgufVocabulary
from qtool.checkpoint.supported import check_model_type, unsupported
from qtool.errors import SourceError

END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
"""Metadata that name a token which ends an answer, the usual one first."""
CHATML_ENDS = ("<|im_end|>", "<|endoftext|>")
"""Ends of a ChatML vocabulary, in the order of the official generation_config.json. GGUF files name only one
of them."""


def config_from_gguf(header: GgufHeader, vocabulary: GgufVocabulary, *, tied: bool) -> QwenConfig:
    """Reads the configuration.

    Args:
        header: the file's header.
        vocabulary: its vocabulary.
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
            f"not a multiple of {architecture}.attention.head_count_kv, {key_value_heads}",
            hint=HINT,
        )
    if f"{architecture}.attention.key_length" not in metadata and hidden % heads:
        raise SourceError(
            f"{architecture}.embedding_length is {hidden}, which is not a multiple of the {heads} heads, "
            f"and there is no {architecture}.attention.key_length",
            hint=HINT,
        )
    head_dim = size("attention.key_length", hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if size(name, head_dim) != head_dim:
            unsupported(f"{architecture}.{name}", size(name), f"{head_dim}, the length of a key")
    rows = _embedding_rows(header, vocabulary)
    return QwenConfig(
        model_type=architecture,
        vocab_size=rows,
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
        bos_token_id=_token(metadata, "tokenizer.ggml.bos_token_id", rows),
        eos_token_ids=_end_tokens(metadata, vocabulary, rows),
        pad_token_id=_token(metadata, "tokenizer.ggml.padding_token_id", rows),
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


def _embedding_rows(header: GgufHeader, vocabulary: GgufVocabulary) -> int:
    """Returns the embedding's rows: often more than there are tokens, for the sake of aligned sizes."""
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise SourceError("the checkpoint lacks the tensor token_embd.weight, the embedding", hint=HINT)
    if vocabulary.size > embedding.shape[0]:
        raise SourceError(
            f"the vocabulary has {vocabulary.size} tokens, but the embedding only {embedding.shape[0]} rows",
            hint=HINT,
        )
    return embedding.shape[0]


def _token(metadata: Mapping[str, GgufValue], key: str, rows: int) -> int | None:
    """Returns a token id of the metadata, or None where it is not given."""
    if key not in metadata:
        return None
    value = integer(metadata, key, least=0)
    if value >= rows:
        raise SourceError(f"the metadata {key} is {value}; valid are 0 to {rows - 1}", hint=HINT)
    return value


def _end_tokens(metadata: Mapping[str, GgufValue], vocabulary: GgufVocabulary, rows: int) -> tuple[int, ...]:
    """Returns the ids that end a generation: those of the metadata, then those every ChatML model has."""
    ends = [_token(metadata, key, rows) for key in END_KEYS]
    added = vocabulary.added_ids()
    if all(name in added for name in CHATML_ENDS):
        ends += [added[name] for name in CHATML_ENDS]
    found = tuple(dict.fromkeys(end for end in ends if end is not None))
    if not found:
        raise SourceError(f"the metadata name no token that ends a text ({', '.join(END_KEYS)})", hint=HINT)
    return found
