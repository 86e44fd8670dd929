"""Finds the safetensors files of a folder and checks that they fit together."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from qtool.checkpoint.files import SourceFile, damaged, read_json_object, shown, some
from qtool.checkpoint.safetensors_file import StoredTensor, read_tensors
from qtool.errors import SourceError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
UNSAFE = "pickle files can run any program when they are opened, so they are never read"
CONVERT_HINT = (
    "take a repository that has .safetensors files, or convert in a sandbox: "
    "AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER) writes safetensors"
)


def read_folder_tensors(
    folder: Path, names: Collection[str]
) -> tuple[list[SourceFile], dict[str, StoredTensor]]:
    """Reads the headers of a folder's weight files.

    Args:
        folder: the folder.
        names: names of the files in it.

    Returns:
        The weight files, sorted, and all tensors in them.

    Raises:
        SourceError: there are none, only unsafe ones, or they do not fit each other or their index.
    """
    if SINGLE in names:
        single = SourceFile.at(folder / SINGLE)
        return [single], read_tensors(single)
    if INDEX not in names:
        _refuse_without_weights(folder, names)
    index = read_index(folder)
    file_names = sorted(set(index.values()))
    missing = [shown(name) for name in file_names if name not in names]
    if missing:
        raise SourceError(
            f"{INDEX} names {len(file_names)} files, of which {len(missing)} are not there: {some(missing)}",
            hint="the download is incomplete: download the missing files",
        )
    files = [SourceFile.at(folder / name) for name in file_names]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        shard = read_tensors(file)
        twice = [shown(name) for name in shard if name in tensors]
        if twice:
            raise damaged(f"{shown(file.path.name)} has tensors that another file has too: {some(twice)}")
        tensors.update(shard)
    misplaced = [
        f"{shown(name)} in {shown(file_name)}"
        for name, file_name in index.items()
        if name not in tensors or tensors[name].file.path.name != file_name
    ]
    if misplaced:
        raise SourceError(
            f"{INDEX} places {len(misplaced)} tensors where they are not: {some(misplaced)}",
            hint="index and weight files are of different downloads: download them again",
        )
    return files, tensors


def read_index(folder: Path) -> dict[str, str]:
    """Returns tensor name -> file name; the files are in the folder itself, wherever their links lead."""
    weight_map = read_json_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(f"{INDEX} must have a weight_map with tensor names and file names")
    for name, file in weight_map.items():
        plain = isinstance(file, str) and not set(file) & set("/\\\0:") and file.endswith(".safetensors")
        if not plain:
            raise damaged(
                f"{INDEX} places the tensor {shown(name)} in {shown(file)}; "
                "valid are names of .safetensors files in the same folder"
            )
    return weight_map


def _refuse_without_weights(folder: Path, names: Collection[str]) -> None:
    """Says what the folder has instead."""
    where = shown(str(folder), 200)
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    if pickles:
        raise SourceError(
            f"the folder {where} has only pickled weights ({some(pickles)}): {UNSAFE}", hint=CONVERT_HINT
        )
    loose = sorted(name for name in names if name.endswith(".safetensors"))
    if loose:
        raise SourceError(
            f"the folder {where} has {some(loose)}, but neither {SINGLE} nor {INDEX}",
            hint="shards need their index; an adapter must be merged into its base model first",
        )
    raise SourceError(
        f"the folder {where} has no weights: neither {SINGLE} nor {INDEX}", hint="has the download finished?"
    )
