"""The tokenizer's files, rebuilt from the metadata of a GGUF file.

GGUF keeps a byte-level BPE vocabulary as three arrays (tokens, token types, merges) and the *name* of the
pattern that splits text before merging. The files written here hold the same in the form that the
`tokenizers` library, transformers and onnxruntime-genai read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.files import shown
from qtool.checkpoint.gguf_config import MODEL, TOKENS, array, number, text
from qtool.checkpoint.gguf_header import GgufHeader, GgufValue
from qtool.checkpoint.supported import unsupported
from qtool.checkpoint.tokenizer_json import check_tokenizer, generation_config_json
from qtool.errors import SourceError

PRE, TYPES, MERGES = "tokenizer.ggml.pre", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
TEMPLATE = "tokenizer.chat_template"

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types: made by merges; special (such as <|im_end|>); found whole in a text but not special (such as
<tool_call>); padding of the vocabulary."""

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2, 2.5 and 3 split text into words, from their official tokenizer.json."""

_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
"""Recommended sampling in GGUF metadata -> its name in generation_config.json."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is found whole in a text, before any splitting."""

    id: int
    content: str
    special: bool

    def flags(self) -> dict[str, object]:
        """Returns it as tokenizer_config.json writes it."""
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {"content": self.content, **flags, "special": self.special}


class GgufTokenizer:
    """The tokenizer of a GGUF file; decodes its arrays only when the files are asked for.

    Raises:
        UnsupportedModelError: the vocabulary is of a kind, or splits text in a way, that is not implemented.
        SourceError: the metadata contradict each other.
    """

    def __init__(self, header: GgufHeader, config: QwenConfig) -> None:
        self._metadata: Mapping[str, GgufValue] = header.metadata
        self._config = config
        kind = text(self._metadata, MODEL)
        if kind != "gpt2":
            unsupported(MODEL, kind, '"gpt2" (byte-level BPE)')
        pattern = text(self._metadata, PRE, "missing")
        if pattern != "qwen2":
            unsupported(PRE, pattern, '"qwen2"', "texts would be split into other tokens than in training")
        for key in ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"):
            if self._metadata.get(key, False) is not False:
                unsupported(key, self._metadata[key], "false, as in all Qwen models")
        self._tokens = array(self._metadata, TOKENS)
        self._merges = array(self._metadata, MERGES)
        self._types = array(self._metadata, TYPES)
        if self._types.count != self._tokens.count or self._tokens.count > config.vocab_size:
            raise SourceError(
                f"the vocabulary has {self._tokens.count} tokens and {self._types.count} token types; "
                f"they must be as many, and at most the {config.vocab_size} rows of the embedding"
            )

    def files(self) -> dict[str, bytes]:
        """Returns the files of the tokenizer, by name.

        Raises:
            SourceError: an array is damaged, or the arrays contradict each other.
        """
        vocabulary, added = self._vocabulary()
        tokenizer = _tokenizer_json(vocabulary, self._merges.strings(), added)
        ids = {token.content: token.id for token in added}
        check_tokenizer(tokenizer, "the tokenizer of the GGUF file", self._config.vocab_size, expected=ids)
        files = {"tokenizer.json": tokenizer, **self._small_files(added)}
        return dict(sorted(files.items()))

    def estimated_bytes(self) -> int:
        """Returns the size of `files()` to about a percent, without decoding a string.

        Exact but for escaped characters (about one token in a hundred has one) and names of added and unused
        tokens.
        """
        types = self._types.integers()
        ids = np.flatnonzero(types == NORMAL)
        # In compact JSON a token is `"token":id,` and a merge is `"left right",`.
        digits = sum(int(np.count_nonzero(ids >= power)) for power in (0, 10, 100, 1_000, 10_000, 100_000))
        arrays = (
            self._tokens.text_bytes + 4 * len(ids) + digits + self._merges.text_bytes + 3 * self._merges.count
        )
        added = [
            AddedToken(int(index), "", bool(types[index] == CONTROL))
            for index in np.flatnonzero((types == CONTROL) | (types == USER_DEFINED))
        ]
        small = self._small_files(added)
        # A name of an added token is in the array once, in the files two or three times.
        names = 20 * len(added) * 2
        return len(_tokenizer_json({}, [], added)) + arrays + sum(map(len, small.values())) + names

    def _vocabulary(self) -> tuple[dict[str, int], list[AddedToken]]:
        """Returns the tokens that merges make, and those that are found whole; ids are their positions."""
        tokens, types = self._tokens.strings(), self._types.integers().tolist()
        vocabulary: dict[str, int] = {}
        added: dict[str, AddedToken] = {}
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
            if kind == UNUSED:
                continue
            if token in vocabulary or token in added:
                raise SourceError(f"the token {shown(token)} is in the vocabulary twice (again as {index})")
            if kind == NORMAL:
                vocabulary[token] = index
            elif kind in (CONTROL, USER_DEFINED):
                added[token] = AddedToken(index, token, kind == CONTROL)
            else:
                unsupported(f"the type of the token {shown(token)}", kind, "1, 3, 4 or 5")
        return vocabulary, list(added.values())

    def _small_files(self, added: Sequence[AddedToken]) -> dict[str, bytes]:
        """Returns all files but tokenizer.json."""
        template = text(self._metadata, TEMPLATE, "")
        files = {
            "tokenizer_config.json": _json(self._tokenizer_config(added, template), indent=2),
            "generation_config.json": generation_config_json(self._config, self._sampling()),
        }
        if template:
            files["chat_template.jinja"] = template.encode()
        return files

    def _tokenizer_config(self, added: Sequence[AddedToken], template: str) -> dict[str, object]:
        names = {token.id: token.content for token in added}

        def name(token: int | None) -> str | None:
            return None if token is None else names.get(token)

        config: dict[str, object] = {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {str(token.id): token.flags() for token in added},
            "additional_special_tokens": [
                token.content for token in added if token.special and token.id != self._config.pad_token_id
            ],
            # Qwen's tokenizers put nothing before a text, although their configurations have a bos_token_id.
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": name(self._config.eos_token_ids[0]),
            "errors": "replace",
            "model_max_length": self._config.max_position_embeddings,
            "pad_token": name(self._config.pad_token_id),
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        }
        return {**config, "chat_template": template} if template else config

    def _sampling(self) -> dict[str, object]:
        """Returns what the metadata recommend for sampling."""
        sampling = {
            name: int(number(self._metadata, key)) if name == "top_k" else number(self._metadata, key)
            for key, name in _SAMPLING.items()
            if key in self._metadata
        }
        return {"do_sample": True, **sampling} if sampling else {}


def _json(value: object, indent: int | None = None) -> bytes:
    separators = None if indent else (",", ":")
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators).encode()


def _tokenizer_json(vocabulary: dict[str, int], merges: list[str], added: Sequence[AddedToken]) -> bytes:
    """Returns tokenizer.json, laid out as Qwen's own.

    An added token gets the next free id when the file is read, whatever id stands in the file, unless the
    model's vocabulary has it. So it is put there too where its id is not the next one.
    """
    if [token.id for token in added] != list(range(len(vocabulary), len(vocabulary) + len(added))):
        everything = vocabulary | {token.content: token.id for token in added}
        vocabulary = dict(sorted(everything.items(), key=lambda item: item[1]))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
    return _json(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": token.id, **token.flags()} for token in added],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": vocabulary,
                "merges": merges,
            },
        }
    )
