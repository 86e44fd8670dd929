"""Hardware profiles of qtool: one TOML file each, loaded into a frozen `Target`.

Standard library only, so that a build script can list targets without installing the compiler's needs.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

from qtool_targets.errors import TargetError
from qtool_targets.schema import (
    Execution,
    Gates,
    Memory,
    Precision,
    Target,
    Weights,
    parse,
    with_gates,
    with_kv_cache,
)

__all__ = [
    "Execution",
    "Gates",
    "Memory",
    "Precision",
    "Target",
    "TargetError",
    "Weights",
    "load",
    "names",
    "with_gates",
    "with_kv_cache",
]


def names() -> list[str]:
    """Returns the names of the profiles that ship with qtool, sorted."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in resources.files(__name__).iterdir()
        if entry.name.endswith(".toml")
    )


def load(name_or_path: str | Path) -> Target:
    """Loads a profile by its name, or from a TOML file of the user's.

    Args:
        name_or_path: a name out of `names()`, or a path that ends in `.toml`.

    Raises:
        TargetError: there is no such profile or file, or it is malformed.
    """
    text = str(name_or_path)
    if text.endswith(".toml"):
        return _parse_file(Path(text))
    if text not in names():
        raise TargetError(
            f"unknown target {text!r}; known: {', '.join(names())}",
            hint="Name one of these, or give the path of a TOML file of your own.",
        )
    return parse(tomllib.loads((resources.files(__name__) / f"{text}.toml").read_text("utf-8")), text)


def _parse_file(path: Path) -> Target:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise TargetError(f"there is no target file {path}", hint="Check the path.") from None
    except OSError as error:
        raise TargetError(f"the target file {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested too deeply
        raise TargetError(f"the target file {path} is not valid TOML: {error}") from error
    return parse(document, str(path))
