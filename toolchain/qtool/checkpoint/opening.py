"""Decides what a source string means, and opens it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NoReturn

from qtool.checkpoint.files import SourceFile, refuse_unreadable, shown
from qtool.checkpoint.record import Checkpoint
from qtool.checkpoint.shards import CONVERT_HINT, PICKLE_SUFFIXES, UNSAFE
from qtool.errors import MissingExtraError, SourceError

VALID = (
    'valid are a folder with config.json, a .gguf file, or a Hugging Face id "organization/name[@revision]"'
)

_HUB_ID = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>\w[\w./-]{0,254}))?", re.ASCII
)
_PATH_STARTS = (".", "/", "~", "\\")


def open_checkpoint(model: str, *, configuration_only: bool = False) -> Checkpoint:
    """Opens a source.

    A path that exists is that path, whatever it looks like. Otherwise a string of the form
    "organization/name" is looked up on the Hugging Face hub, unless it can only be meant as a path: one that
    starts with ".", "/" or "~", or ends in ".gguf".

    Args:
        model: path of a folder or of a GGUF file, or a Hugging Face id, also with "@revision" (a branch, tag
            or commit).
        configuration_only: enough for a plan: weights are neither downloaded nor looked for, and the result
            has none unless they come with the configuration, as in a GGUF file.

    Raises:
        SourceError: there is no such source, or it cannot be read.
        UnsupportedModelError: it is a model of a kind that is not implemented.
        MissingExtraError: the package that reads such a source is not installed.
    """
    path = Path(os.path.expanduser(model))  # noqa: PTH111  (Path.expanduser raises where there is no such user)
    mode = _mode(path) if model else None
    try:
        if mode is None:
            return _open_hub(model, configuration_only)
        if stat.S_ISDIR(mode):
            from qtool.checkpoint.folder import open_folder

            return open_folder(path, configuration_only=configuration_only)
        if not _is_gguf(path):
            _refuse_file(path)
        from qtool.checkpoint.gguf_file import open_gguf

        return open_gguf(path)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"reading {shown(model, 200)} needs the package {error.name}, which is not installed",
            hint="pip install 'qtool-edge[build]'",
        ) from error


def _mode(path: Path) -> int | None:
    """Returns what kind of file a path is, or None where nothing is there."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            refuse_unreadable(path, error)
        return None
    except (OSError, ValueError) as error:  # no permission, a loop of links, a NUL in the name
        refuse_unreadable(path, error)


def _is_gguf(path: Path) -> bool:
    """Whether a file is to be read as GGUF: by its name or, as blobs of a cache have none, by its content."""
    if path.suffix.lower() == ".gguf":
        return True
    file = SourceFile.at(path)
    return file.size >= 4 and file.read(0, 4) == b"GGUF"


def _refuse_file(path: Path) -> NoReturn:
    """Says why a single file is not a source."""
    where = shown(str(path), 200)
    if path.name.endswith(PICKLE_SUFFIXES):
        raise SourceError(f"{where} may be a pickle file: {UNSAFE}", hint=CONVERT_HINT)
    if path.suffix in (".safetensors", ".json"):
        raise SourceError(
            f"{where} is only a part of a model, which also needs its configuration and tokenizer",
            hint=f"give the folder instead: {path.parent}",
        )
    raise SourceError(f"{where} is not a model; {VALID}")


def _open_hub(model: str, configuration_only: bool) -> Checkpoint:
    """Opens a Hugging Face id, once it is clear that the string is not a mistyped path."""
    found = _HUB_ID.fullmatch(model)
    if model.startswith(_PATH_STARTS) or model.lower().endswith(".gguf") or (not found and "/" in model):
        raise SourceError(
            f"there is no file or folder {shown(model, 200)}", hint=f"check the spelling; {VALID}"
        )
    if not found:
        raise SourceError(
            f"there is no file or folder {shown(model, 200)}, and it is not a Hugging Face id; {VALID}",
            hint="an id has an organization, as in Qwen/Qwen2.5-0.5B-Instruct",
        )
    from qtool.checkpoint.hub import open_hub

    return open_hub(found["id"], found["revision"], configuration_only=configuration_only)
