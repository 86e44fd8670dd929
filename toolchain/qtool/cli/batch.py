"""`qtool batch`."""

from __future__ import annotations

import io
import json
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtool.cli.answers import describe_answer, opening_messages
from qtool.cli.load_options import load_options
from qtool.cli.sampling_options import sampling_options

if TYPE_CHECKING:
    from qtool_runtime import TextStream


@click.command(name="batch")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--system", help="System message of every prompt. [default: the one that is baked in]")
@click.option("--raw", is_flag=True, help="Continue prompts as they are, without the chat template.")
@click.option(
    "--at-once", type=click.IntRange(1, 64), default=4, show_default=True, help="Answers in progress."
)
@sampling_options
@load_options
def command(
    *,
    artifact: Path,
    prompts: Path,
    system: str | None,
    raw: bool,
    at_once: int,
    loading: dict[str, Any],
    thinking: bool | None,
    thinking_budget: int | None,
    tools: list[Any] | None,
    tool_choice: str | None,
    **options: Any,
) -> None:
    """Answer every line of the file PROMPTS ("-" for standard input), several together.

    Prints one line of JSON for each prompt, in their order.
    """
    import qtool_runtime

    text = sys.stdin.read() if str(prompts) == "-" else prompts.read_text("utf-8", errors="replace")
    lines = [line.rstrip("\r\n") for line in io.StringIO(text)]
    with qtool_runtime.load(artifact, **loading) as model:
        if raw:
            answers = model.generate_batch(lines, at_once=at_once, **options)
        else:
            opening = opening_messages(model, system)
            answers = model.chat_batch(
                [[*opening, {"role": "user", "content": line}] for line in lines],
                at_once=at_once,
                tools=tools,
                tool_choice=tool_choice,
                enable_thinking=thinking,
                thinking_budget=thinking_budget,
                **options,
            )
        waiting = deque(zip(lines, answers, strict=True))
        for _ in answers.events():
            _print_ended(waiting)
        _print_ended(waiting)


def _print_ended(waiting: deque[tuple[str, TextStream]]) -> None:
    """Prints answers that have ended, up to the first that has not."""
    while waiting and waiting[0][1].stop_reason is not None:
        prompt, stream = waiting.popleft()
        click.echo(json.dumps({"prompt": prompt, **describe_answer(stream)}, ensure_ascii=False))
