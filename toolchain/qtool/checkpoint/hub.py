"""Opens a model of the Hugging Face hub, through its own library and cache.

`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean here what they mean everywhere else. Small
files are fetched first, so that a model that is not supported costs no download of its weights.
"""

from __future__ import annotations

import dataclasses
import glob
from pathlib import Path
from typing import NoReturn

from huggingface_hub import HfApi, errors, snapshot_download

from qtool.checkpoint.files import shown, some
from qtool.checkpoint.folder import CONFIG, open_folder, read_config
from qtool.checkpoint.folder_tokenizer import TOKENIZER_FILES
from qtool.checkpoint.naming import folder_name
from qtool.checkpoint.record import Checkpoint
from qtool.checkpoint.shards import CONVERT_HINT, INDEX, PICKLE_SUFFIXES, SINGLE, UNSAFE, read_index
from qtool.errors import SourceError

SMALL_FILES = (CONFIG, INDEX, *TOKENIZER_FILES)
"""By their full names: a pattern such as "*.json" would also fetch the subfolders of some repositories."""


def open_hub(model: str, revision: str | None, *, configuration_only: bool = False) -> Checkpoint:
    """Opens a repository, downloading what is not in the cache.

    Args:
        model: "organization/name".
        revision: branch, tag or commit; None for the default branch.
        configuration_only: leave the weights where they are (see `open_checkpoint`).

    Raises:
        SourceError: it does not exist, cannot be reached, or has no safetensors.
        UnsupportedModelError: the model is of a kind that is not implemented.
    """
    folder = _download(model, revision, SMALL_FILES)
    if not (folder / CONFIG).exists():
        _refuse_repository(model, folder.name, f"has no {CONFIG}")
    read_config(folder)
    if not configuration_only:
        folder = _download_weights(model, folder)
    opened = open_folder(folder, configuration_only=configuration_only)
    name = folder_name(model.partition("/")[2])
    return dataclasses.replace(opened, name=name, kind="huggingface", id=model, revision=folder.name)


def _download_weights(model: str, folder: Path) -> Path:
    """Completes the cache's folder of one commit with the weights."""
    weights = {SINGLE}
    if (folder / INDEX).exists():
        weights |= set(read_index(folder).values())
    # The same commit again, even if somebody pushes in between.
    folder = _download(model, folder.name, (*SMALL_FILES, *weights))
    if not any((folder / name).exists() for name in weights):
        _refuse_repository(model, folder.name, f"has neither {SINGLE} nor {INDEX}")
    return folder


def _download(model: str, revision: str | None, names: tuple[str, ...]) -> Path:
    """Returns the cache's folder of one commit, which is named after it, with those of `names` that exist."""
    where = model if revision is None else f"{model}@{revision}"
    try:
        patterns = [glob.escape(name) for name in names]
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise SourceError(
            f"the repository {where} is gated",
            hint=f"accept its terms at https://huggingface.co/{model}, then log in: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"there is neither a folder {where} here nor a repository {where} on the Hugging Face hub",
            hint="check the spelling; if the repository is private, log in first: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"the repository {model} has no revision {shown(revision)}",
            hint=f"see its branches, tags and commits at https://huggingface.co/{model}/commits",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise SourceError(
            f"{where} is not complete in the local cache, and the Hugging Face hub cannot be reached",
            hint="check the connection and unset HF_HUB_OFFLINE, or give a local folder or GGUF file",
        ) from error
    except Exception as error:  # the HTTP library's many errors, a full disk, a broken cache
        raise SourceError(
            f"downloading {where} failed: {type(error).__name__}: {shown(str(error), 300)}",
            hint="check the connection and the free space, and run the command again: it resumes",
        ) from error


def _refuse_repository(model: str, commit: str, problem: str) -> NoReturn:
    """Says what a repository has instead of a safetensors checkpoint."""
    try:
        names = HfApi().list_repo_files(model, revision=commit)
    except Exception:  # offline: then the error says less
        names = []
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    ggufs = [name for name in names if name.endswith(".gguf")]
    hint = "take a repository that has config.json and .safetensors files"
    if ggufs:
        problem += f", only GGUF files ({some(ggufs)})"
        hint = f"download one and give its path: hf download {model} {ggufs[0]}"
    elif pickles:
        problem, hint = f"{problem}, only {some(pickles)}: {UNSAFE}", CONVERT_HINT
    raise SourceError(f"the repository {model} {problem}", hint=hint)
