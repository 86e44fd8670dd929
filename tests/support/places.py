"""Where tests find material that is not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qtool.errors import MissingExtraError
from qtool.web.libraries import find_libraries


def shared_folder() -> Path | None:
    """Returns the folder with official configurations, tokenizers and corpora, or None where it is absent.

    `$QTOOL_SHARED`, or else a folder `shared` beside the repository or beside one of the folders above it.
    """
    named = os.environ.get("QTOOL_SHARED")
    if named:
        return Path(named)
    beside = (parent / "shared" for parent in Path(__file__).resolve().parents)
    return next((folder for folder in beside if (folder / "real-models").is_dir()), None)


def real_model(name: str) -> Path | None:
    """Returns the GGUF file of a real model such as "qwen2.5-coder-0.5b", or None where it is absent.

    Looks in `$QTOOL_REAL_MODELS`, or else in ~/.cache/qtool-real-models.
    """
    root = Path(os.environ.get("QTOOL_REAL_MODELS") or Path.home() / ".cache" / "qtool-real-models")
    return next(iter(sorted((root / name).glob("*.gguf"))), None)


def node_modules() -> Path | None:
    """Returns where npm has installed libraries of pages, `$QTOOL_NODE_MODULES`; None for the user's cache.

    Skips the test, with the reason, where they are in neither.
    """
    named = os.environ.get("QTOOL_NODE_MODULES")
    folder = Path(named) if named else None
    try:
        find_libraries(folder)
    except MissingExtraError as error:
        pytest.skip(f"{error.message} (see QTOOL_NODE_MODULES, or `qtool package --fetch`)")
    return folder
