"""The tokenizer's files, rebuilt from the metadata of a GGUF file.

They are written in the form that the `tokenizers` library, transformers and onnxruntime-genai read, laid out
as Qwen's own but for the order of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.gguf_header import GgufValue
from qtool.checkpoint.gguf_metadata import integer, number, text
from qtool.checkpoint.gguf_vocabulary import AddedToken, GgufVocabulary
from qtool.checkpoint.tokenizer_json import check_tokenizer, generation_config_json

TEMPLATE = "tokenizer.chat_template"

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2, 2.5 and 3 split text into words, from their official tokenizer.json."""

_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
"""Recommended sampling in GGUF metadata -> its name in generation_config.json."""


class GgufTokenizer:
    """The tokenizer of a GGUF file; decodes the vocabulary only when the files are asked for."""

    def __init__(
        self, metadata: Mapping[str, GgufValue], vocabulary: GgufVocabulary, config: QwenConfig
    ) -> None:
        self._metadata, self._vocabulary, self._config = metadata, vocabulary, config

    def files(self) -> dict[str, bytes]:
        """Returns the files, by name.

        Raises:
            SourceError: an array is damaged, or the arrays contradict each other.
        """
        added = self._vocabulary.added
        tokenizer = _tokenizer_json(self._vocabulary.normal_ids(), self._vocabulary.merges(), added)
        check_tokenizer(
            tokenizer,
            "the tokenizer of the GGUF file",
            self._config.vocab_size,
            expected=self._vocabulary.added_ids(),
        )
        return dict(sorted({"tokenizer.json": tokenizer, **self._small_files()}.items()))

    def estimated_bytes(self) -> int:
        """Returns the size of `files()` to well under a percent, without decoding the vocabulary."""
        framework = len(_tokenizer_json({}, [], self._vocabulary.added, contiguous=True))
        small = sum(map(len, self._small_files().values()))
        return framework + small + self._vocabulary.compact_json_bytes()

    def _small_files(self) -> dict[str, bytes]:
        """Returns all files but tokenizer.json."""
        template = text(self._metadata, TEMPLATE, "")
        files = {
            "tokenizer_config.json": _json(self._tokenizer_config(template), indent=2),
            "generation_config.json": generation_config_json(self._config, self._sampling()),
        }
        if template:
            files["chat_template.jinja"] = template.encode()
        return files

    def _tokenizer_config(self, template: str) -> dict[str, object]:
        added, pad = self._vocabulary.added, self._config.pad_token_id
        names: dict[int | None, str] = {token.id: token.content for token in added}
        config: dict[str, object] = {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {str(token.id): _flags(token) for token in added},
            "additional_special_tokens": [
                token.content for token in added if token.special and token.id != pad
            ],
            # Qwen's tokenizers put nothing before a text, although their configurations have a bos_token_id.
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": names.get(self._config.eos_token_ids[0]),
            "errors": "replace",
            "model_max_length": self._config.max_position_embeddings,
            "pad_token": names.get(pad),
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        }
        return {**config, "chat_template": template} if template else config

    def _sampling(self) -> dict[str, object]:
        """Returns what the metadata recommend for sampling."""
        sampling: dict[str, object] = {
            name: number(self._metadata, key) for key, name in _SAMPLING.items() if key in self._metadata
        }
        if "general.sampling.top_k" in self._metadata:
            sampling["top_k"] = integer(self._metadata, "general.sampling.top_k", least=0)
        return {"do_sample": True, **sampling} if sampling else {}


def _flags(token: AddedToken) -> dict[str, object]:
    """Returns an added token as tokenizer_config.json has it."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": token.content, **flags, "special": token.special}


def _json(value: object, indent: int | None = None) -> bytes:
    separators = None if indent else (",", ":")
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators).encode()


def _tokenizer_json(
    ids: dict[str, int], merges: list[str], added: Sequence[AddedToken], *, contiguous: bool | None = None
) -> bytes:
    """Returns tokenizer.json.

    Whatever id stands in the file, an added token gets the next free one when the file is read, unless the
    model's vocabulary has the token. So it is put there too where its id is not the next one.

    Args:
        ids: the tokens that merges make.
        merges: the merges in order, each as "left right".
        added: the other tokens.
        contiguous: whether the added tokens' ids follow those of the others; None to find out.
    """
    if contiguous is None:
        contiguous = [token.id for token in added] == list(range(len(ids), len(ids) + len(added)))
    if not contiguous:
        ids = ids | {token.content: token.id for token in added}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
    return _json(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": token.id, **_flags(token)} for token in added],
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
                # The tokenizers package collects the names in a sorted tree: sorted ones are read faster.
                "vocab": dict(sorted(ids.items())),
                "merges": merges,
            },
        }
    )
