"""What the benchmark scripts share: child processes, memory, paired ratios, and how results are printed.

Every script prints lines for people on stderr, and one JSON object as the last line on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Child:
    """A child process that has ended.

    Attributes:
        seconds: wall time from start to end.
        cpu_seconds: processor time, of all threads; the steadier of the two on a machine that is shared.
        peak_bytes: largest resident set of the process or of one of the children it waited for.
        stdout: what it printed.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    stdout: str

    @property
    def result(self) -> Any:
        """The last line of stdout as JSON."""
        return json.loads(self.stdout.strip().splitlines()[-1])


def run_child(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Child:
    """Runs a command to its end, and measures it.

    The peak comes from the kernel's accounting of this one child (`wait4`). The kernel counts from before the
    new program replaces the copy of ours, so the peak is never below our own: keep large arrays out of a
    process that calls this.

    Args:
        command: program and arguments.
        environment: variables to add or replace.

    Raises:
        RuntimeError: the command failed; its last lines of stderr are in the message.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(
            words,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        text = stdout.read().decode(errors="replace")
        if process.returncode:
            tail = "\n".join(stderr.read().decode(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}:\n{tail}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Child(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, text)


def memory_status() -> dict[str, int]:
    """Returns this process's memory, as `qtool bench` measures it."""
    from qtool.bench.worker import memory  # some scripts run where there is no qtool

    return memory()


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Returns the median, lowest and highest of ours / theirs, round by round, as `qtool bench` does."""
    from qtool.bench import measures

    return measures.paired_ratio(ours, theirs).to_dict()


def folder_bytes(folder: Path, pattern: str = "*") -> int:
    """Returns the size of the files in a folder whose names match."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser whose help is the script's docstring as it stands."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def say(line: str) -> None:
    """Prints a line for people."""
    print(line, file=sys.stderr, flush=True)


def finish(result: Mapping[str, Any]) -> None:
    """Prints the result: one line of JSON."""
    print(json.dumps(rounded(result), sort_keys=True), flush=True)


def rounded(value: Any) -> Any:
    """Rounds every float in a nested structure to five significant digits."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
