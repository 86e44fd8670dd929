"""Opens a folder in the form of the Hugging Face hub: config.json, safetensors, tokenizer.json."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.config_json import config_from_json
from qtool.checkpoint.files import SourceFile, read_json_object, refuse_unreadable, shown, some
from qtool.checkpoint.folder_tokenizer import GENERATION, TOKENIZER, FolderTokenizer
from qtool.checkpoint.layout import check_layers, check_weights
from qtool.checkpoint.naming import folder_name
from qtool.checkpoint.quantization import Quantization, read_quantization
from qtool.checkpoint.quantized_weights import quantized_weights
from qtool.checkpoint.record import Checkpoint
from qtool.checkpoint.safetensors_file import READABLE_TYPES
from qtool.checkpoint.shards import CONVERT_HINT, PICKLE_SUFFIXES, SINGLE, UNSAFE, read_folder_tensors
from qtool.checkpoint.weight import Weight
from qtool.errors import SourceError, UnsupportedModelError

CONFIG = "config.json"

TOKENIZER_BYTES_PER_TOKEN = 60
"""To estimate a tokenizer.json that is not there; Qwen2.5's has 46, Qwen3's 75."""


def open_folder(path: Path, *, configuration_only: bool = False) -> Checkpoint:
    """Opens a folder; reads its small files and, unless `configuration_only`, the headers of its weights.

    Raises:
        SourceError: a file is missing, malformed, or does not fit the others.
        UnsupportedModelError: the model is of a kind that is not implemented.
    """
    try:
        names = {entry.name for entry in path.iterdir()}
        title = folder_name(path.resolve().name)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        refuse_unreadable(path, error)
    if CONFIG not in names:
        _refuse_without_config(path, names)
    config, quantization = read_config(path)
    files, weights = ([], {}) if configuration_only else _open_weights(path, names, config, quantization)
    tokenizer_bytes, tokenizer_files = _tokenizer(path, names, config, configuration_only)
    return Checkpoint(
        name=title,
        kind="safetensors",
        id=title,
        revision=None,
        config=config,
        weights=weights,
        tokenizer_bytes=tokenizer_bytes,
        tokenizer_files=tokenizer_files,
        sha256=lambda: {file.path.name: file.sha256() for file in files},
        quantization=quantization,
    )


def _open_weights(
    path: Path, names: Collection[str], config: QwenConfig, quantization: Quantization | None
) -> tuple[list[SourceFile], dict[str, Weight]]:
    """Returns the weight files and the model's tensors in them."""
    files, tensors = read_folder_tensors(path, names)
    weights: dict[str, Weight] = {}
    if quantization is not None:
        check_layers(config, len(tensors))
        quantized, tensors = quantized_weights(quantization, config, tensors)
        weights.update(quantized)
    unreadable = [
        f"{shown(tensor.name)} is {tensor.dtype}"
        for tensor in tensors.values()
        if tensor.dtype not in READABLE_TYPES
    ]
    if unreadable:
        raise UnsupportedModelError(
            f"{len(unreadable)} tensors are not of a supported type: {some(unreadable)}; "
            f"supported: {', '.join(READABLE_TYPES)}",
            hint="give the original, unquantized model, or one with a quantization_config in its config.json",
        )
    weights |= {name: tensor.weight() for name, tensor in tensors.items()}
    return files, check_weights(config, weights)


def _tokenizer(
    path: Path, names: Collection[str], config: QwenConfig, optional: bool
) -> tuple[int, Callable[[], dict[str, bytes]]]:
    """Returns size and reader of the tokenizer's files; where there are none and need not be, an estimate."""
    if optional and TOKENIZER not in names:
        return config.vocab_size * TOKENIZER_BYTES_PER_TOKEN, dict
    tokenizer = FolderTokenizer(path, names, config)
    return tokenizer.total_bytes(), tokenizer.files


def read_config(folder: Path) -> tuple[QwenConfig, Quantization | None]:
    """Returns what a folder's config.json says about the model, and about its quantization."""
    generation = folder / GENERATION
    document = read_json_object(folder / CONFIG)
    config = config_from_json(document, read_json_object(generation) if generation.exists() else None)
    return config, read_quantization(document)


def _refuse_without_config(path: Path, names: Collection[str]) -> NoReturn:
    """Says what a folder is that is not a checkpoint."""
    where = shown(str(path), 200)
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    problem, hint = f"has no {CONFIG}", f"a model's folder holds {CONFIG}, tokenizer.json and {SINGLE}"
    if not names:
        problem, hint = "is empty", "has the download finished?"
    elif ggufs:
        hint = f"give the GGUF file itself: {path / ggufs[0]}"
    elif "adapter_config.json" in names:
        problem = "holds an adapter (LoRA), not a model"
        hint = "merge it into its base model first, for example with peft's merge_and_unload()"
    elif pickles:
        problem, hint = f"has no {CONFIG}, only {some(pickles)}: {UNSAFE}", CONVERT_HINT
    raise SourceError(f"the folder {where} {problem}", hint=hint)
