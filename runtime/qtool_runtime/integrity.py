"""Does a folder hold exactly the files that its manifest lists?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from qtool_runtime.errors import ArtifactError
from qtool_runtime.manifest import FILE_NAME, FileEntry, Manifest

SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class FileProblem:
    """One difference between the folder and the manifest.

    Attributes:
        path: the file, relative to the artifact.
        kind: "missing", "size", "sha256" or "extra".
        detail: the difference in words.
    """

    path: str
    kind: str
    detail: str


def find_problems(
    folder: str | Path, manifest: Manifest, *, hashes: bool, extra: bool = True
) -> list[FileProblem]:
    """Compares an artifact's files with its manifest.

    Args:
        folder: the artifact.
        manifest: its manifest.
        hashes: also read every byte and compare SHA-256.
        extra: also report files that the manifest does not list.

    Returns:
        The differences, in the order of their paths; empty if there are none.
    """
    folder = Path(folder)
    problems = [problem for entry in manifest.files if (problem := _compare(folder, entry, hashes))]
    if extra:
        listed = {FILE_NAME, *(entry.path for entry in manifest.files)}
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if not path.is_dir() and name not in listed:
                problems.append(FileProblem(name, "extra", "is not listed in the manifest"))
    return sorted(problems, key=lambda problem: problem.path)


def check_files(folder: str | Path, manifest: Manifest, *, hashes: bool, extra: bool = True) -> None:
    """Raises if `find_problems` finds any.

    Raises:
        ArtifactError: a file is missing, altered or unknown; the first few are named.
    """
    problems = find_problems(folder, manifest, hashes=hashes, extra=extra)
    if not problems:
        return
    shown = "; ".join(f"{problem.path} {problem.detail}" for problem in problems[:SHOWN_PROBLEMS])
    more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
    raise ArtifactError(
        f"{folder} is not the artifact its manifest describes: {shown}{more}",
        hint="Copy the artifact again, or build it again.",
    )


def _compare(folder: Path, entry: FileEntry, hashes: bool) -> FileProblem | None:
    path = folder / entry.path
    if not path.is_file():
        return FileProblem(entry.path, "missing", "is missing")
    size = path.stat().st_size
    if size != entry.size:
        return FileProblem(entry.path, "size", f"has {size} bytes instead of {entry.size}")
    if hashes and (found := sha256_of(path)) != entry.sha256:
        return FileProblem(entry.path, "sha256", f"has the SHA-256 {found} instead of {entry.sha256}")
    return None


def sha256_of(path: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal; memory use does not depend on its size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
