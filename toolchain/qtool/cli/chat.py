"""`qtool chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtool.cli.answers import print_answer
from qtool.cli.load_options import load_options
from qtool.cli.sampling_options import sampling_options
from qtool_runtime.errors import ContextLimitError

if TYPE_CHECKING:
    from qtool_runtime import Model

_HELP = "Commands: /clear forgets the conversation, /exit ends (so does Ctrl-D); Ctrl-C stops an answer."


@click.command(name="chat")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--system", help="System message.")
@sampling_options
@load_options
def command(
    *,
    artifact: Path,
    system: str | None,
    engine: str,
    context: int | None,
    threads: int | None,
    spin: int | None,
    provider: str | None,
    **options: Any,
) -> None:
    """Talk with the model in ARTIFACT, turn by turn.

    Without a terminal, every line of standard input is a turn.
    """
    import qtool_runtime

    options["enable_thinking"] = options.pop("thinking")
    opening: list[dict[str, Any]] = [{"role": "system", "content": system}] if system is not None else []
    with qtool_runtime.load(
        artifact, engine=engine, context=context, threads=threads, spin=spin, provider=provider
    ) as model:
        click.echo(f"{model.manifest.name}, {model.context:,} tokens of context. {_HELP}", err=True)
        messages = list(opening)
        while (text := _read_turn()) is not None:
            if text == "/exit":
                break
            if text == "/clear":
                messages = list(opening)
                click.echo("forgotten", err=True)
            elif text.startswith("/"):
                click.echo(f"unknown command {text.split()[0]!r}. {_HELP}", err=True)
            elif text:
                _answer(model, messages, text, options)


def _read_turn() -> str | None:
    """Returns the next line of the user's, or None at the end."""
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    line = sys.stdin.readline()
    return line.strip() if line else None


def _answer(model: Model, messages: list[dict[str, Any]], text: str, options: dict[str, Any]) -> None:
    """Prints the answer to one turn and adds both to the conversation; a stopped answer counts so far."""
    question = {"role": "user", "content": text}
    try:
        stream = model.chat([*messages, question], **options)
    except ContextLimitError as error:
        click.echo(f"error: {error.message}", err=True)
        click.echo("hint: /clear forgets the conversation and makes room.", err=True)
        return
    try:
        print_answer(stream)
    except KeyboardInterrupt:
        stream.close()
        click.echo()
    messages += [question, stream.message()]
