"""Runs commands in this process, and checks what holds for every one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qtool.cli import cli

Invoke = Callable[..., Result]


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    """`invoke("inspect", folder)`: a result with exit_code, stdout and stderr; never a traceback."""
    try:
        runner = CliRunner(mix_stderr=False)  # type: ignore[call-arg]
    except TypeError:  # click 8.2 and later
        runner = CliRunner()

    def run(*arguments: object, **options: Any) -> Result:
        result = runner.invoke(cli, [str(argument) for argument in arguments], **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(f"{arguments} ended with a traceback") from result.exception
        assert "Traceback" not in result.stderr
        if result.exit_code not in (0, 2, 130):
            lines = result.stderr.splitlines()
            assert [line for line in lines if line.startswith("error: ")], result.stderr
            # What follows an error is at most its hint.
            first = next(index for index, line in enumerate(lines) if line.startswith("error: "))
            hints = [line for line in lines[first + 1 :] if line.startswith("hint: ")]
            assert len(hints) <= 1, result.stderr
        return result

    return run
