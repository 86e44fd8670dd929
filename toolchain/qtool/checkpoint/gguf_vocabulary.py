"""The vocabulary in the metadata of a GGUF file.

GGUF keeps a byte-level BPE vocabulary as three arrays (tokens, token types, merges) and the *name* of the
pattern that splits text before merging.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qtool.checkpoint.files import damaged, shown
from qtool.checkpoint.gguf_header import GgufValue
from qtool.checkpoint.gguf_metadata import array, text
from qtool.checkpoint.supported import unsupported

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TOKENS, TYPES, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types: made by merges; special (such as <|im_end|>); found whole in a text but not special (such as
<tool_call>); padding of the vocabulary."""
NOT_SPECIAL = frozenset(
    f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
)
"""Tokens that Qwen's own tokenizers do not call special, so that a decoded text shows them. The usual
converter gives everything that looks like <|this|> the type of a special token."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is found whole in a text, before any splitting."""

    id: int
    content: str
    special: bool


class GgufVocabulary:
    """A vocabulary whose long arrays are still in the file; only the added tokens are decoded at once.

    Args:
        metadata: the file's metadata.

    Raises:
        UnsupportedModelError: it is of a kind, or splits text in a way, that is not implemented.
        SourceError: the metadata contradict each other.
    """

    def __init__(self, metadata: Mapping[str, GgufValue]) -> None:
        _refuse_variants(metadata)
        self._tokens, self._merges = array(metadata, TOKENS), array(metadata, MERGES)
        self._types = array(metadata, TYPES).integers()
        if len(self._types) != self._tokens.count:
            raise damaged(f"{TOKENS} has {self._tokens.count} entries, but {TYPES} has {len(self._types)}")
        strange = np.flatnonzero(~np.isin(self._types, (NORMAL, CONTROL, USER_DEFINED, UNUSED)))
        if len(strange):
            unsupported(f"{TYPES}[{strange[0]}]", int(self._types[strange[0]]), "1, 3, 4 or 5")
        others = np.flatnonzero(self._types != NORMAL).tolist()
        names = self._tokens.strings_at(others)
        self._other_bytes = sum(len(name.encode()) for name in names)
        self.added = [
            AddedToken(index, name, bool(self._types[index] == CONTROL) and name not in NOT_SPECIAL)
            for index, name in zip(others, names, strict=True)
            if self._types[index] != UNUSED
        ]

    @property
    def size(self) -> int:
        """How many ids there are, unused ones included."""
        return self._tokens.count

    def added_ids(self) -> dict[str, int]:
        """Returns the added tokens' ids by name."""
        return {token.content: token.id for token in self.added}

    def normal_ids(self) -> dict[str, int]:
        """Returns the ids of the tokens that merges make; decodes all of them.

        Raises:
            SourceError: a token is there twice.
        """
        normal = (self._types == NORMAL).tolist()
        ids: dict[str, int] = {}
        taken = self.added_ids()
        for index, (token, wanted) in enumerate(zip(self._tokens.strings(), normal, strict=True)):
            if not wanted:
                continue
            if token in ids or token in taken:
                raise damaged(f"the token {shown(token)} is in the vocabulary twice (again as {index})")
            ids[token] = index
        return ids

    def merges(self) -> list[str]:
        """Returns the merges, each as "left right"."""
        return self._merges.strings()

    def compact_json_bytes(self) -> int:
        """Returns how many bytes normal tokens and merges take as compact JSON.

        A token is `"token":id,` and a merge is `"left right",`. Not counted are the backslashes of escaped
        characters, which about one token in a hundred has.
        """
        ids = np.flatnonzero(self._types == NORMAL)
        digits = sum(int(np.count_nonzero(ids >= 10**power)) for power in range(1, 10)) + len(ids)
        tokens = self._tokens.text_bytes - self._other_bytes + 4 * len(ids) + digits
        return tokens + self._merges.text_bytes + 3 * self._merges.count


def _refuse_variants(metadata: Mapping[str, GgufValue]) -> None:
    """Refuses vocabularies that need another tokenizer than the one that is written."""
    kind, pattern = text(metadata, MODEL), text(metadata, PRE, "missing")
    if kind != "gpt2":
        unsupported(MODEL, kind, '"gpt2" (byte-level BPE)')
    if pattern != "qwen2":
        unsupported(PRE, pattern, '"qwen2"', "texts would be split into other tokens than in training")
    for key in ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"):
        if metadata.get(key, False) is not False:
            unsupported(key, metadata[key], "false, as in all Qwen models")
