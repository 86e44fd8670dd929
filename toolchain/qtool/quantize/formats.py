"""How each matrix of one artifact is stored: as the target says, or as a budget was spent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.layout import EMBEDDING, LM_HEAD, weight_shapes
from qtool.checkpoint.quantization import Quantization
from qtool.quantize.schemes import Role, Scheme, role_of, scheme_for
from qtool_targets import Target

Formats = Mapping[str, Scheme]
"""By a matrix's Hugging Face name. A tied LM head has an entry of its own beside the embedding's."""


def formats_for(config: QwenConfig, target: Target, quantization: Quantization | None = None) -> Formats:
    """Returns what the target asks for: one scheme for each kind of matrix.

    Args:
        config: the model.
        target: the profile.
        quantization: how matrices are quantized already; those keep their schemes.
    """

    def taken(name: str) -> Scheme | None:
        tied_head = name == LM_HEAD and config.tie_word_embeddings
        return quantization.scheme_of(EMBEDDING if tied_head else name) if quantization else None

    names = [*weight_shapes(config), LM_HEAD]
    roles = {name: role for name in names if (role := role_of(name)) is not None}
    return {name: scheme_for(target, role, taken(name)) for name, role in roles.items()}


def shares_embedding(formats: Formats) -> bool:
    """True when a tied embedding and LM head are stored once."""
    embedding, head = formats[EMBEDDING], formats[LM_HEAD]
    return embedding == head or not (embedding.is_integer or head.is_integer)


def stored_matrices(config: QwenConfig, formats: Formats) -> Iterator[tuple[str, tuple[int, int], Scheme]]:
    """Yields name, shape and scheme of every matrix in the data file; a tied LM head only if it differs."""
    for name, shape in weight_shapes(config).items():
        if name in formats:
            yield name, (shape[0], shape[1]), formats[name]
    if config.tie_word_embeddings and not shares_embedding(formats):
        yield LM_HEAD, (config.vocab_size, config.hidden_size), formats[LM_HEAD]


def multiplied_matrices(config: QwenConfig, formats: Formats) -> Iterator[tuple[str, Scheme]]:
    """Yields the tensors that something is multiplied with; a tied embedding is the LM head's."""
    for name in weight_shapes(config):
        if role_of(name) == Role.EMBEDDING:
            if config.tie_word_embeddings:
                yield name, formats[LM_HEAD]
        elif name in formats:
            yield name, formats[name]
