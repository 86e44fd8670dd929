"""The command line: `qtool COMMAND`. click is imported only in this package; one file a command.

stdout carries results (or JSON), stderr progress and errors. Errors are `error: …` and `hint: …`, with an
exit code for each class (see `qtool.errors`).
"""

from __future__ import annotations

import importlib
import signal
import sys
from typing import NoReturn

import click

from qtool_runtime.errors import MissingExtraError, QtoolError
from qtool_targets import TargetError

_COMMANDS = (
    *("build", "targets", "inspect", "verify", "package", "cache", "matrix"),
    *("run", "batch", "chat", "eval", "bench", "health"),
)

_EXTRA_OF_MODULE = {
    "onnx": "build",
    "onnx_ir": "build",
    "gguf": "build",
    "huggingface_hub": "build",
    "rich": "build",
    "threadpoolctl": "build",
    "onnxruntime": "cpu",
    "optimum": "optimum",
    "torch": "optimum",
}


class _Commands(click.Group):
    """Imports a command's module when it is called, and turns errors into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = importlib.import_module(f"qtool.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in _COMMANDS:
            raise click.UsageError(f"No such command {name!r}; known: {', '.join(_COMMANDS)}.", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (QtoolError, TargetError) as error:
            _fail(ctx, error)
        except ModuleNotFoundError as error:
            _fail(ctx, _missing_extra(error))
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            ctx.exit(130)


def _fail(ctx: click.Context, error: QtoolError | TargetError) -> NoReturn:
    """Reports an error without a traceback, and ends with its exit code."""
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    ctx.exit(error.exit_code)


def _missing_extra(error: ModuleNotFoundError) -> QtoolError:
    """Says which extra brings a missing package; any other missing module is a defect and goes on."""
    name = (error.name or "").split(".")[0]
    if name not in _EXTRA_OF_MODULE:
        raise error
    extra = _EXTRA_OF_MODULE[name]
    return MissingExtraError(
        f"this command needs the package {name!r}, which is not installed",
        hint=f"Run: pip install 'qtool-edge[{extra}]'",
    )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qtool-edge", prog_name="qtool")
def cli() -> None:
    """Compile small Qwen models for one device, and run them there."""


def main() -> None:
    """Entry point of the `qtool` command."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # Model output is any Unicode; a terminal that cannot show a character must not end the program,
        # nor must a byte of piped text that is not UTF-8.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # Ended from outside, a build leaves nothing behind either: its folders go while the error travels up.
    signal.signal(signal.SIGTERM, _terminate)
    cli()


def _terminate(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)
