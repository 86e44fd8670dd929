"""Parts of a tokenizer's files that do not depend on where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.files import damaged, shown
from qtool.errors import SourceError


def check_tokenizer(
    content: bytes, what: str, vocab_size: int, expected: Mapping[str, int] | None = None
) -> None:
    """Loads a tokenizer.json with the library that will run it.

    Args:
        content: the file.
        what: how an error calls it.
        vocab_size: rows of the embedding; every token must have one.
        expected: tokens and the ids that they must have.

    Raises:
        SourceError: the library refuses it, or a token has another id.
    """
    from tokenizers import Tokenizer

    try:
        ids = Tokenizer.from_buffer(content).get_vocab()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # plain Exceptions; and a panic in Rust is not even an Exception
        raise damaged(f"{what} is not usable: {shown(str(error), 200)}") from error
    highest = max(ids.items(), key=lambda item: item[1], default=("", -1))
    if highest[1] >= vocab_size:
        raise SourceError(
            f"{what} gives {shown(highest[0])} the id {highest[1]}; the embedding has only {vocab_size} rows",
            hint="the tokenizer belongs to another model",
        )
    for token, index in (expected or {}).items():
        if ids.get(token) != index:
            raise damaged(f"{what} gives {shown(token)} the id {ids.get(token)}, not {index}")


def generation_config_json(config: QwenConfig, sampling: Mapping[str, object]) -> bytes:
    """Returns a generation_config.json with the configuration's token ids and these sampling settings."""
    ends = list(config.eos_token_ids)
    content = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": config.pad_token_id,
        **sampling,
    }
    kept = {key: value for key, value in sorted(content.items()) if value is not None}
    return json.dumps(kept, indent=2).encode()
