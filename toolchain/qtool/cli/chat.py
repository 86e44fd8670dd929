"""`qtool chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtool.cli.answers import opening_messages, print_answer
from qtool.cli.load_options import load_options
from qtool.cli.sampling_options import sampling_options
from qtool_runtime.errors import ContextLimitError

if TYPE_CHECKING:
    from qtool_runtime import Model

_HELP = "Commands: /clear forgets the conversation, /exit ends (so does Ctrl-D); Ctrl-C stops an answer."


@click.command(name="chat")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--system", help="System message. [default: the one that is baked in]")
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Go on with the conversation in FILE, if it is there, and save it there at the end.",
)
@sampling_options
@load_options
def command(
    *,
    artifact: Path,
    system: str | None,
    state: Path | None,
    loading: dict[str, Any],
    **options: Any,
) -> None:
    """Talk with the model in ARTIFACT, turn by turn.

    Without a terminal, every line of standard input is a turn.
    """
    import qtool_runtime

    options["enable_thinking"] = options.pop("thinking")
    resumed = state is not None and state.exists()
    if resumed and system is not None:
        raise click.UsageError(f"--system is for a new conversation; {state} has one.")
    if state is not None and not state.absolute().parent.is_dir():
        raise click.UsageError(f"--state: there is no folder {state.absolute().parent} to save it in.")
    if state is not None and loading["engine"] != "onnxruntime":
        raise click.UsageError(
            f"--state needs keys and values, which the engine {loading['engine']} does not give."
        )
    with qtool_runtime.load(artifact, **loading) as model:
        click.echo(f"{model.manifest.name}, {model.context:,} tokens of context. {_HELP}", err=True)
        opening = opening_messages(model, system)
        messages = model.load_prefix(state).messages if state is not None and resumed else list(opening)
        try:
            _talk(model, opening, messages, options)
        finally:
            if state is not None:
                rendering = {name: options[name] for name in ("tools", "enable_thinking")}
                model.save_prefix(state, messages, **rendering)


def _talk(
    model: Model, opening: list[dict[str, Any]], messages: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    """Answers one turn after the other, and adds them to the conversation."""
    while (text := _read_turn()) is not None:
        if text == "/exit":
            break
        if text == "/clear":
            messages[:] = opening
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
