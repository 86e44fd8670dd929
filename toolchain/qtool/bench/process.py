"""The parent's end of an engine process (see `worker.py` for what is said)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qtool.errors import EngineError

WORKER = Path(__file__).with_name("worker.py")
SHOWN_LINES = 5
SHOWN_BYTES = 2000
PATIENCE_SECONDS = 10.0
"""For an engine to end once it has been told to."""


class EngineProcess:
    """A running `worker.py`.

    Args:
        engine: its name in `worker.ENGINES`.
        python: interpreter that has the engine's packages.

    Raises:
        EngineError: the interpreter cannot be started.
    """

    def __init__(self, engine: str, python: str = sys.executable) -> None:
        self._engine = engine
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        try:
            self._process = subprocess.Popen(
                [python, str(WORKER), engine],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                encoding="utf-8",
                errors="replace",
                # The script's folder holds modules that must not hide others of the same name.
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
        except OSError as error:
            self._errors.close()
            raise EngineError(
                f"{engine}: the interpreter {python} cannot be started: {error.strerror or error}",
                hint=f"Give another one: --peer-python {engine}=PYTHON",
            ) from error

    def ask(self, **request: object) -> dict[str, Any]:
        """Sends a request and returns its answer.

        Raises:
            EngineError: the process has ended, or does not answer in the worker's language.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:  # it has ended; what it left on standard error says why
            raise self._failure() from None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise EngineError(
                f"{self._engine}: the interpreter printed {line.strip()[:80]!r} instead of an answer",
                hint=f"Is it a Python? Give another one: --peer-python {self._engine}=PYTHON",
            )
        return answer

    def close(self, *, at_once: bool = False) -> None:
        """Ends the process: asks it to, and does not wait for longer than `PATIENCE_SECONDS`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):  # it may have ended already
            self._process.stdin.close()
        try:
            if not at_once:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(PATIENCE_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._errors.close()

    def _failure(self) -> EngineError:
        """Says how the process ended, with the last lines that it printed on standard error."""
        try:
            code = self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return EngineError(f"{self._engine}: its process closed its output and goes on running")
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - SHOWN_BYTES))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        said = "".join(f"\n{line.rstrip()}" for line in lines[-SHOWN_LINES:])
        return EngineError(f"{self._engine}: its process {how}{said and ':'}{said}")


@contextmanager
def started(engine: str, python: str = sys.executable) -> Iterator[EngineProcess]:
    """Starts an engine's process, and ends it."""
    process = EngineProcess(engine, python)
    try:
        yield process
    except BaseException:
        process.close(at_once=True)
        raise
    process.close()
