"""Between text and token ids, and from a stream of ids to a stream of text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qtool_runtime.errors import ArtifactError, GenerationError


class Tokenizer:
    """A byte-level BPE tokenizer, as all Qwen models have: every token stands for some bytes of UTF-8.

    Args:
        backend: the `tokenizers.Tokenizer`.

    Raises:
        ArtifactError: the tokenizer is of another kind.
    """

    def __init__(self, backend: Any) -> None:
        from tokenizers.decoders import ByteLevel

        if not isinstance(backend.decoder, ByteLevel):
            raise ArtifactError(
                f"tokenizer.json has the decoder {type(backend.decoder).__name__}; only ByteLevel is known"
            )
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._special = {id for id, token in added.items() if token.special}
        self._added = {token.content: id for id, token in added.items() if token.content}
        self._bytes = _byte_of_character()

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Reads a `tokenizer.json`.

        Raises:
            ArtifactError: the file is malformed or holds another kind of tokenizer.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"{path} cannot be read: {error.strerror or error}", hint="Build the artifact again."
            ) from error
        return cls.from_bytes(content, str(path))

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> Tokenizer:
        """Reads the content of a `tokenizer.json`.

        Args:
            content: the document.
            name: what to call it in errors.

        Raises:
            ArtifactError: it is malformed or holds another kind of tokenizer.
        """
        from tokenizers import Tokenizer as Backend

        try:
            backend = Backend.from_buffer(content)
        except Exception as error:  # tokenizers raises plain Exception
            raise ArtifactError(
                f"{name} cannot be read: {error}",
                hint="Build the artifact again, or upgrade the tokenizers package.",
            ) from error
        backend.no_truncation()
        backend.no_padding()
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """Token ids are below this number; the model's logits may have more rows, as padding."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of `text`. Names of special tokens in the text become those tokens.

        Args:
            text: any text that UTF-8 can encode.
            add_special_tokens: also add what the tokenizer puts around a text (Qwen's add nothing).

        Raises:
            GenerationError: the text holds half a surrogate pair.
        """
        _check_text(text)
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Names of the control tokens, which have no text of their own."""
        return tuple(name for name, id in self._added.items() if id in self._special)

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """Returns the token ids of `text` without the character `mark`.

        A mark within the name of an added token keeps that from becoming the token: it is encoded as the text
        it reads. Without any mark, the result is that of `encode`, for tokenizers whose added tokens do not
        take the white space around them (none of Qwen's does).

        Raises:
            GenerationError: the text holds half a surrogate pair.
        """
        _check_text(text)
        ids: list[int] = []
        for part, token in self._split(text, self._added):
            ids += self._encode_plain(part.replace(mark, "")) if token is None else [token]
        return ids

    def encode_exact(self, text: str) -> list[int]:
        """Returns token ids whose bytes together are those of `text`.

        Unlike `encode`, it takes names of control tokens for the text they read, and does not normalize.
        """
        ids: list[int] = []
        visible = [name for name, id in self._added.items() if id not in self._special]
        for part, token in self._split(text, visible):
            ids += self._encode_plain(part, normalize=False) if token is None else [token]
        return ids

    def single_token(self, text: str) -> int | None:
        """Returns the id of the token that `text` is, or None if it is several."""
        ids = self.encode(text, add_special_tokens=False)
        return ids[0] if len(ids) == 1 else None

    def _split(self, text: str, names: Collection[str]) -> Iterator[tuple[str, int | None]]:
        """Yields the parts of a text in order, with the id of those that are added tokens among `names`."""
        pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        for index, part in enumerate(re.split(f"({pattern})", text) if names else [text]):
            yield part, self._added[part] if index % 2 else None

    def _encode_plain(self, text: str, *, normalize: bool = True) -> list[int]:
        """Encodes text in which no added token is looked for: the steps of `tokenizers`, less the first."""
        if normalize and self._backend.normalizer:
            text = self._backend.normalizer.normalize_str(text)
        words = [text]
        if self._backend.pre_tokenizer:
            words = [word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in self._backend.model.tokenize(word)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of `token_ids`; bytes that are not UTF-8 become U+FFFD."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes a token stands for: none for special tokens and ids without a token."""
        token: str | None = self._backend.id_to_token(token_id)
        if token is None or token_id in self._special:
            return b""
        try:
            return bytes([self._bytes[character] for character in token])
        except KeyError:  # an added token, stored as it is
            return token.encode("utf-8")

    def new_decoder(self, visible: Sequence[str] = ()) -> StreamDecoder:
        """Returns a decoder for one stream of token ids.

        Args:
            visible: added tokens that have text, even if this tokenizer calls them special.
        """
        shown = {self._added[name]: name.encode() for name in visible if name in self._added}
        return StreamDecoder(self, shown)


class StreamDecoder:
    """Turns token ids into text as they come, and keeps back the bytes of an unfinished character.

    Args:
        tokenizer: says which bytes a token stands for.
        shown: ids for which these bytes are taken instead.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Mapping[int, bytes]) -> None:
        self._tokenizer = tokenizer
        self._shown = dict(shown)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Returns the text that `token_id` completes; empty if it ends inside a character."""
        shown = self._shown.get(token_id)
        return self._utf8.decode(self._tokenizer.token_bytes(token_id) if shown is None else shown)

    def finish(self) -> str:
        """Returns what is left at the end: nothing, or U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", final=True)


class StopStrings:
    """Passes text on up to the first stop string, and keeps back only what may be the start of one.

    The stop string that is complete first ends the text; of several that end at the same character, the
    longest. So the result does not depend on how the text was cut into pieces.

    Args:
        stops: strings that end the text.

    Raises:
        GenerationError: one is empty or not a string.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise GenerationError(f"a stop string is {stop!r}; valid: a string of one character or more")
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Returns the text that can be passed on now. After a stop string was found, that is none."""
        if self.found or not self._stops:
            return "" if self.found else text
        self._held += text
        ends = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            return self._release(min(ends)[1])
        return self._release(len(self._held) - self._possible_start())

    def finish(self) -> str:
        """Returns what was kept back, when the text has ended without a stop string."""
        return "" if self.found else self._release(len(self._held))

    def _release(self, count: int) -> str:
        released, self._held = self._held[:count], self._held[count:]
        return released

    def _possible_start(self) -> int:
        """Length of the longest end of the held text that a stop string starts with."""
        longest = min(max(map(len, self._stops)) - 1, len(self._held))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise GenerationError(f"the text cannot be encoded: {error}") from None


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: byte-level tokenizers write each byte as one printable character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
