"""Opens a GGUF file: tensors under their Hugging Face names, dequantized by rows."""

from __future__ import annotations

import re
from pathlib import Path

from qtool.checkpoint.files import SourceFile
from qtool.checkpoint.gguf_config import config_from_gguf
from qtool.checkpoint.gguf_header import GgufHeader, read_header
from qtool.checkpoint.gguf_metadata import text
from qtool.checkpoint.gguf_tensors import gguf_weight, precision_bits, same_tensor
from qtool.checkpoint.gguf_tokenizer import GgufTokenizer
from qtool.checkpoint.gguf_vocabulary import GgufVocabulary
from qtool.checkpoint.layout import EMBEDDING, FINAL_NORM, LM_HEAD, check_weights
from qtool.checkpoint.naming import folder_name
from qtool.checkpoint.record import Checkpoint
from qtool.checkpoint.supported import check_model_type
from qtool.checkpoint.weight import Weight

_TOP_NAMES = {"token_embd": EMBEDDING, "output_norm": FINAL_NORM, "output": LM_HEAD}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GENERIC_STEMS = re.compile(r"(ggml-)?model([-_.].*)?", re.IGNORECASE)


def open_gguf(path: Path) -> Checkpoint:
    """Opens a GGUF file; reads its header and, of some files, a few rows of two tensors.

    Raises:
        SourceError: the file is not a whole and valid GGUF, or lacks something.
        UnsupportedModelError: it is valid, but of a kind that is not implemented.
    """
    file = SourceFile.at(path)
    header = read_header(file)
    # Before anything else is asked of the file: another architecture has other tensors and metadata.
    check_model_type(text(header.metadata, "general.architecture"), "general.architecture")
    vocabulary = GgufVocabulary(header.metadata)
    weights, tied = _weights(header)
    config = config_from_gguf(header, vocabulary, tied=tied)
    tokenizer = GgufTokenizer(header.metadata, vocabulary, config)
    return Checkpoint(
        name=_name(header, path),
        kind="gguf",
        id=path.name,
        revision=None,
        config=config,
        weights=check_weights(config, weights),
        tokenizer_bytes=tokenizer.estimated_bytes(),
        tokenizer_files=tokenizer.files,
        sha256=lambda: {path.name: file.sha256()},
    )


def _weights(header: GgufHeader) -> tuple[dict[str, Weight], bool]:
    """Returns the weights under Hugging Face's names, and whether embedding and LM head are one tensor.

    A file without `output.weight` is tied. One that has both tensors may still come from a tied model: some
    converters write the matrix twice, with more bits for the LM head. Then the better copy serves both uses.
    """
    weights = {
        name: gguf_weight(header.file, tensor, name)
        for tensor in header.tensors.values()
        for name in [huggingface_name(tensor.name)]
    }
    embedding, head = (header.tensors.get(f"{name}.weight") for name in ("token_embd", "output"))
    if embedding is None or head is None:
        return weights, head is None
    tied = same_tensor(header.file, embedding, head)
    if tied:
        better = max(head, embedding, key=lambda tensor: precision_bits(tensor.type))  # the head, if equal
        weights[EMBEDDING] = gguf_weight(header.file, better, EMBEDDING)
        del weights[LM_HEAD]
    return weights, tied


def huggingface_name(name: str) -> str:
    """Returns the Hugging Face name of a GGUF tensor; an unknown name stays as it is."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP_NAMES:
        return _TOP_NAMES[stem].removesuffix("weight") + kind
    block = re.fullmatch(r"blk\.(0|[1-9]\d{0,3})\.(\w+)", stem, re.ASCII)
    if block and block[2] in _LAYER_NAMES:
        return f"model.layers.{block[1]}.{_LAYER_NAMES[block[2]]}.{kind}"
    return name


def _name(header: GgufHeader, path: Path) -> str:
    """Returns the file's stem, which says which quantization it is, unless it says nothing at all."""
    title = header.metadata.get("general.name")
    if _GENERIC_STEMS.fullmatch(path.stem) and isinstance(title, str):
        return folder_name(title)
    return folder_name(path.stem)
