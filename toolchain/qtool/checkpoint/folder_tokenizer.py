"""The tokenizer's files of a Hugging Face folder, as an artifact ships them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.files import (
    MAX_JSON_BYTES,
    SourceFile,
    damaged,
    parse_json_object,
    read_json_object,
    shown,
)
from qtool.checkpoint.tokenizer_json import check_tokenizer, generation_config_json
from qtool.errors import SourceError

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"
OLD_TEMPLATE = "chat_template.json"
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, OLD_TEMPLATE, GENERATION)
MAX_TOKENIZER_BYTES = 128 * 2**20
"""Upper bound of tokenizer.json; Qwen's have 7 to 11 MB."""


class FolderTokenizer:
    """The tokenizer of a folder.

    Args:
        folder: the folder.
        names: names of the files in it.
        config: the model's configuration.

    Raises:
        SourceError: there is no tokenizer.json.
    """

    def __init__(self, folder: Path, names: Collection[str], config: QwenConfig) -> None:
        self._folder, self._names, self._config = folder, names, config
        if TOKENIZER not in names:
            hint = "has the download finished?"
            if "vocab.json" in names:
                hint = (
                    "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) makes it from vocab.json"
                )
            raise SourceError(f"the folder {shown(str(folder), 200)} has no {TOKENIZER}", hint=hint)
        self._tokenizer = SourceFile.at(folder / TOKENIZER)
        if self._tokenizer.size > MAX_TOKENIZER_BYTES:
            raise damaged(
                f"{shown(str(folder / TOKENIZER), 200)} has {self._tokenizer.size} bytes; "
                f"at most {MAX_TOKENIZER_BYTES} are accepted"
            )

    def total_bytes(self) -> int:
        """Returns the size of `files()`."""
        return self._tokenizer.size + sum(map(len, self._small_files().values()))

    def files(self) -> dict[str, bytes]:
        """Returns the files, by name.

        Raises:
            SourceError: a file is malformed, or a token has no row in the embedding.
        """
        content = self._tokenizer.read_whole(MAX_TOKENIZER_BYTES)
        check_tokenizer(content, shown(str(self._tokenizer.path), 200), self._config.vocab_size)
        return dict(sorted({TOKENIZER: content, **self._small_files()}.items()))

    def _small_files(self) -> dict[str, bytes]:
        """Returns all files but tokenizer.json: copied as they are, made where they are missing."""
        files = {
            name: SourceFile.at(self._folder / name).read_whole(MAX_JSON_BYTES)
            for name in (TOKENIZER_CONFIG, GENERATION)
            if name in self._names
        }
        files.setdefault(GENERATION, generation_config_json(self._config, {}))
        template = self._template(files.get(TOKENIZER_CONFIG))
        if template:
            files[TEMPLATE] = template
        return files

    def _template(self, tokenizer_config: bytes | None) -> bytes | None:
        """Returns the chat template from the first place that has one (transformers looks in this order)."""
        if TEMPLATE in self._names:
            return _utf8(SourceFile.at(self._folder / TEMPLATE).read_whole(MAX_JSON_BYTES), TEMPLATE)
        if OLD_TEMPLATE in self._names:
            return _template_in(read_json_object(self._folder / OLD_TEMPLATE), OLD_TEMPLATE)
        if tokenizer_config is not None:
            return _template_in(parse_json_object(tokenizer_config, TOKENIZER_CONFIG), TOKENIZER_CONFIG)
        return None


def _template_in(content: dict[str, object], where: str) -> bytes | None:
    """Returns the "chat_template" of a JSON file: a string, or the entry "default" of a list."""
    template = content.get("chat_template")
    if isinstance(template, list):
        template = next(
            (
                item.get("template")
                for item in template
                if isinstance(item, dict) and item.get("name") == "default"
            ),
            template,
        )
    if template is None:
        return None
    if not isinstance(template, str):
        raise damaged(
            f"chat_template in {where} is {shown(template)}; valid are a string, "
            'or a list of objects with "name" and "template" of which one is named "default"'
        )
    try:
        return template.encode("utf-8")
    except UnicodeEncodeError as error:
        raise damaged(f"chat_template in {where} has characters that do not exist: {error.reason}") from error


def _utf8(content: bytes, where: str) -> bytes:
    """Returns `content`, refusing what is not UTF-8."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from error
    return content
