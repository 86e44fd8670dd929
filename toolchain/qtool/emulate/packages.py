"""What the emulated system is made of: Debian's packages for arm64, and wheels for aarch64 from PyPI.

Nothing is installed on this machine. apt works on lists, caches and a status of its own, in which no package
is installed, so that it finds every library that Python needs; it checks the archive's signatures as ever.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qtool.errors import EmulationError

SYSTEM_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
SOURCES_VARIABLE = "QTOOL_APT_SOURCES"

_SOURCES = (
    Path("/etc/apt/sources.list.d/debian.sources"),
    Path("/etc/apt/sources.list.d/ubuntu.sources"),
    Path("/etc/apt/sources.list"),
)
_OLDEST_GLIBC, _NEWEST_GLIBC = 17, 35  # minor versions; 2.36 is Debian 12's
_PATIENCE_SECONDS = 300.0
"""For a single command that fetches or unpacks something."""
_SHOWN_LINES = 4

_APT_CONFIGURATION = """\
#clear APT::Architectures;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Dir::State "{folder}/state/";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache/";
Dir::Etc::SourceList "{sources}";
Dir::Etc::SourceParts "/dev/null";
"""


class FetchError(EmulationError):
    """Something could not be fetched, or unpacked."""


def system_sources() -> Path:
    """Returns the list of archives that Debian's packages come from: the system's, or the variable's.

    Raises:
        EmulationError: there is none.
    """
    named = os.environ.get(SOURCES_VARIABLE)
    for path in (Path(named),) if named else _SOURCES:
        if path.is_file() and path.stat().st_size:
            return path.absolute()
    raise EmulationError(
        f"the emulated system needs Debian's packages, and {named or 'this system'} lists no archive of them",
        hint=f"Run in a Debian container, or set {SOURCES_VARIABLE} to a file of apt sources.",
    )


def unpack_system(folder: Path, sources: Path) -> None:
    """Fetches Python and what it needs for arm64, and unpacks it.

    Raises:
        EmulationError: a tool is missing.
        FetchError: a package cannot be fetched.
    """
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool) is None:
            raise EmulationError(
                f"{tool} is not installed, which fetches the emulated system",
                hint=f"Install Debian's package {package!r}, or run in a Debian container.",
            )
    with tempfile.TemporaryDirectory(prefix="qtool-apt-") as name:
        apt = Path(name)
        for part in ("state/lists/partial", "cache/archives/partial"):
            (apt / part).mkdir(parents=True)
        (apt / "status").touch()
        configuration = apt / "apt.conf"
        configuration.write_text(_APT_CONFIGURATION.format(folder=apt, sources=sources))
        hint = (
            "This needs the network, once. The archives in"
            f" {sources} must have arm64 packages: Debian's do, Ubuntu's are in another archive, which"
            f" {SOURCES_VARIABLE} can name."
        )
        command = ("apt-get", "-q", "-c", str(configuration))
        _run((*command, "update"), "the lists of Debian's packages for arm64", hint)
        install = ("install", "--yes", "--download-only", *SYSTEM_PACKAGES)
        _run((*command, *install), "Debian's packages for arm64", hint)
        for archive in sorted((apt / "cache" / "archives").glob("*.deb")):
            _run(("dpkg-deb", "-x", str(archive), str(folder)), f"the package {archive.name}", "")


def python_version(system: Path) -> str:
    """Returns the version of an unpacked system's Python, such as "3.11".

    Raises:
        EmulationError: it has none.
    """
    for library in (system / "usr" / "lib").glob("python3.*/os.py"):
        if re.fullmatch(r"python3\.\d+", library.parent.name):
            return library.parent.name.removeprefix("python")
    raise EmulationError(
        f"the emulated system {system} has no Python", hint="Remove that folder, and try again."
    )


def install_wheels(folder: Path, requirements: Sequence[str], version: str) -> None:
    """Installs wheels for aarch64, without what they depend on.

    Args:
        folder: where to.
        requirements: names with versions.
        version: of the emulated Python.

    Raises:
        FetchError: pip is missing, or there is no such wheel.
    """
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(_NEWEST_GLIBC, _OLDEST_GLIBC - 1, -1)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(folder)]
    command += ["--implementation", "cp", "--python-version", version]
    for platform in (*platforms, "manylinux2014_aarch64"):
        command += ["--platform", platform]
    hint = (
        "This needs pip and the network, once. The emulated system has the same versions as this one: each"
        f" needs a wheel for aarch64 and Python {version}."
    )
    _run((*command, *requirements), f"wheels for aarch64 ({', '.join(requirements)})", hint)


def _run(command: Sequence[str], what: str, hint: str) -> None:
    """Runs a command that fetches or unpacks `what`."""
    environment = {**os.environ, "LC_ALL": "C", "PIP_USER": "0", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(
            f"{what} did not come within {_PATIENCE_SECONDS:g} seconds", hint=hint or "Try again."
        ) from None
    if done.returncode:
        lines = [line for line in done.stdout.strip().splitlines() if not line.startswith("WARNING")]
        said = "".join(f"\n{line}" for line in lines[-_SHOWN_LINES:])
        raise FetchError(f"{what} cannot be had: {command[0]} failed{said and ':'}{said}", hint=hint)
