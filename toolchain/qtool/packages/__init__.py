"""Artifacts in the forms that others take: model packages of ONNX Runtime, archives for apps.

What is written holds artifacts whole and unaltered. `checked` reads one and makes sure of that.
"""

from __future__ import annotations

import re
from pathlib import Path

from qtool_runtime import manifest
from qtool_runtime.errors import ArtifactError
from qtool_runtime.integrity import check_files
from qtool_runtime.manifest import Manifest


def checked(artifact: Path) -> Manifest:
    """Reads the manifest of an artifact, and compares every file with it.

    Raises:
        ArtifactError: it is no artifact, or not as it was built.
    """
    document = manifest.read(artifact)
    check_files(artifact, document, hashes=True)
    return document


def file_names(document: Manifest) -> list[str]:
    """Returns the paths of all files of an artifact, the manifest among them."""
    return sorted([manifest.FILE_NAME, *(entry.path for entry in document.files)])


def target_name(document: Manifest) -> str:
    """Returns the name of the target that an artifact was built for; it can be the name of a folder.

    Raises:
        ArtifactError: it is no name of a target.
    """
    name = document.target.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name, re.ASCII):
        raise ArtifactError(
            f"{document.name} was built for a target called {name!r}; valid are lower-case letters, digits,"
            " '.', '_' and '-'",
            hint="Build the artifact again.",
        )
    return name
