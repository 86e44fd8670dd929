"""Runs Python programs on an emulated processor.

qemu translates a program of 64-bit Arm and passes its system calls on to this machine's kernel. Files that it
asks for are looked for below a folder first (`-L`): there lie the C library, and what describes the machine.
The rest of the file system is this machine's own, so paths of artifacts mean the same here and there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qtool.emulate.processors import Processor, describe_machine
from qtool.errors import EmulationError

_SHOWN_LINES = 4
_NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}


class CrashError(EmulationError):
    """The emulated program did not end well."""


@dataclass(frozen=True)
class Root:
    """An unpacked system.

    Attributes:
        system: Debian's packages; its Python is `usr/bin/python3`.
        wheels: installed wheels.
    """

    system: Path
    wheels: Path


@dataclass(frozen=True)
class Emulator:
    """One processor of one system.

    Attributes:
        root: the system.
        processor: the processor.
    """

    root: Root
    processor: Processor

    def run(
        self,
        arguments: Sequence[str],
        *,
        packages: Sequence[Path] = (),
        text: str = "",
        write_bytecode: bool = False,
        timeout: float,
    ) -> str:
        """Runs the emulated Python and returns its standard output.

        Args:
            arguments: the interpreter's.
            packages: folders of pure Python packages to import besides the system's.
            text: standard input.
            write_bytecode: keep what imported modules are compiled to, beside them.
            timeout: seconds.

        Raises:
            EmulationError: qemu is missing, or the time is up.
            CrashError: the program failed.
        """
        qemu = find_qemu()
        with tempfile.TemporaryDirectory(prefix="qtool-emulate-") as name:
            folder = Path(name)
            prefix = self._prefix(folder)
            own = folder / "packages"
            own.mkdir()
            for package in packages:
                (own / package.name).symlink_to(package.absolute())
            # Neither a script's own folder nor `site`, which would bring this machine's packages in.
            python = [str(self.root.system / "usr" / "bin" / "python3"), "-P", "-S"]
            command = [qemu, "-cpu", self.processor.name, "-L", str(prefix), *python, *arguments]
            try:
                done = subprocess.run(
                    command,
                    input=text,
                    capture_output=True,
                    encoding="utf-8",
                    errors="replace",
                    cwd=folder,
                    env=self._environment(own, folder) | ({} if write_bytecode else _NO_BYTECODE),
                    timeout=timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise EmulationError(
                    f"{self.processor.name} was not done after {timeout:g} seconds",
                    hint="An emulated processor is many times slower: allow more with --timeout, or generate"
                    " fewer tokens.",
                ) from None
        if done.returncode:
            raise CrashError(f"{self.processor.name} {_how_it_ended(done)}")
        return done.stdout

    def _prefix(self, folder: Path) -> Path:
        """Makes the folder that the program takes for "/" where a file of that name is in it."""
        prefix = folder / "root"
        prefix.mkdir()
        system = self.root.system
        (prefix / "usr").symlink_to(system / "usr")
        merged = not (system / "lib").is_dir()  # newer systems have all libraries in /usr/lib
        (prefix / "lib").symlink_to(system / "usr" / "lib" if merged else system / "lib")
        numbers = os.sched_getaffinity(0)  # a container may be given any of a large machine's
        describe_machine(prefix, self.processor, max(os.cpu_count() or 1, max(numbers) + 1))
        return prefix

    def _environment(self, own: Path, folder: Path) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "PYTHONHOME": str(self.root.system / "usr"),
            "PYTHONPATH": os.pathsep.join((str(own), str(self.root.wheels))),
            "PYTHONUTF8": "1",
            "ORT_DISABLE_TELEMETRY": "1",
        }


def find_qemu() -> str:
    """Returns the path of qemu for programs of 64-bit Arm.

    Raises:
        EmulationError: it is not installed, or this is not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise EmulationError(
            f"programs can be emulated on Linux only, not on {sys.platform}",
            hint="Run this in a Linux container.",
        )
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if path := shutil.which(name):
            return path
    raise EmulationError(
        "qemu for 64-bit Arm programs is not installed",
        hint="Run: apt-get install qemu-user-static",
    )


def qemu_version() -> str:
    """Returns qemu's version, such as "7.2.22"."""
    done = subprocess.run([find_qemu(), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\d+(\.\d+)+)", done.stdout)
    return found[1] if found else "of an unknown version"


def _how_it_ended(done: subprocess.CompletedProcess[str]) -> str:
    """Says how a failed program ended, with the last lines of its standard error."""
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    said = "".join(f"\n{line.rstrip()}" for line in lines[-_SHOWN_LINES:])
    how = f"ended with exit code {done.returncode}"
    if done.returncode < 0:
        name = str(-done.returncode)
        with suppress(ValueError):
            name = signal.Signals(-done.returncode).name
        how = f"was ended by {name}"
        if done.returncode == -signal.SIGILL:
            how += ": a library uses an instruction that this processor does not have"
    return f"{how}{said and ':'}{said}"
