"""The emulated system: Debian's Python for arm64 and wheels for aarch64, set up once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from qtool.emulate.cache import Note, kept_folder
from qtool.emulate.emulator import Emulator, Root
from qtool.emulate.packages import (
    SYSTEM_PACKAGES,
    install_wheels,
    python_version,
    system_sources,
    unpack_system,
)
from qtool.emulate.processors import PROCESSORS
from qtool.errors import MissingExtraError
from qtool_runtime.compatibility import import_onnxruntime

RECIPE = "1"
"""Goes up when the same inputs are to give another system."""

RUNTIME_PACKAGES = ("numpy", "tokenizers", "jinja2", "markupsafe")
"""What qtool_runtime imports, besides onnxruntime."""
RUNTIME_MODULES = ("numpy", "tokenizers", "jinja2", "onnxruntime")
_FIRST_IMPORT_SECONDS = 300.0


def runtime_requirements() -> list[str]:
    """Returns what the runtime needs, in the versions that run here: only the processor shall differ."""
    return [f"onnxruntime=={import_onnxruntime().__version__}", *installed(RUNTIME_PACKAGES)]


def installed(names: Sequence[str]) -> list[str]:
    """Returns requirements of packages in the versions that are installed here.

    Raises:
        MissingExtraError: one is not installed.
    """
    try:
        return [f"{name}=={metadata.version(name)}" for name in names]
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            f"the package {error.name!r} is not installed here, so there is no version of it to emulate",
            hint=f"Run: pip install {error.name}",
        ) from error


def prepare_root(requirements: Sequence[str], modules: Sequence[str], note: Note) -> Root:
    """Returns a system with these wheels; sets it up, which takes up to a minute, if it is not in the cache.

    Args:
        requirements: names with versions.
        modules: what is imported once, to see that it can be, and so that it is compiled to bytecode.
        note: told what is done.

    Raises:
        EmulationError: a tool, the network or a wheel is missing.
    """
    sources = system_sources()

    def make_system(folder: Path) -> None:
        note("fetching Debian's Python for arm64 (once)")
        unpack_system(folder, sources)
        python_version(folder)  # raises where there is none

    inputs = (RECIPE, *SYSTEM_PACKAGES, sources.read_text("utf-8", errors="replace"))
    system = kept_folder("system", inputs, make_system, note)
    version = python_version(system)

    def make_wheels(folder: Path) -> None:
        note("fetching wheels for aarch64 (once)")
        install_wheels(folder, requirements, version)
        emulator = Emulator(Root(system, folder), PROCESSORS["cortex-a76"])
        statement = f"import {', '.join(modules)}"
        emulator.run(["-c", statement], write_bytecode=True, timeout=_FIRST_IMPORT_SECONDS)

    wheels = kept_folder("wheels", (RECIPE, version, *sorted(requirements)), make_wheels, note)
    return Root(system, wheels)
