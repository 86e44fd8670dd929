"""`qtool run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from qtool.cli.answers import describe_answer, opening_messages, print_answer
from qtool.cli.load_options import load_options
from qtool.cli.output import json_option, print_json
from qtool.cli.sampling_options import sampling_options


@click.command(name="run")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--system", help="System message. [default: the one that is baked in]")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without the chat template.")
@click.option("--stats", is_flag=True, help="Print token counts and rates on stderr.")
@sampling_options
@load_options
@json_option
def command(
    *,
    artifact: Path,
    prompt: str,
    system: str | None,
    raw: bool,
    stats: bool,
    engine: str,
    context: int | None,
    threads: int | None,
    spin: int | None,
    provider: str | None,
    thinking: bool | None,
    thinking_budget: int | None,
    tools: list[Any] | None,
    tool_choice: str | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Answer PROMPT with the model in ARTIFACT; the text is printed as it is generated.

    PROMPT is "-" to read it from standard input. Reasoning goes to standard error; a tool call is one line of
    JSON.
    """
    import qtool_runtime

    for_chat = {
        "--system": system,
        "--thinking": thinking,
        "--thinking-budget": thinking_budget,
        "--tools": tools,
        "--tool-choice": tool_choice,
    }
    for name, value in for_chat.items():
        if raw and value is not None:
            raise click.UsageError(f"{name} needs the chat template; it does not go with --raw.")
    text = sys.stdin.read() if prompt == "-" else prompt
    with qtool_runtime.load(
        artifact, engine=engine, context=context, threads=threads, spin=spin, provider=provider
    ) as model:
        if raw:
            stream = model.generate(text, **sampling)
        else:
            stream = model.chat(
                [*opening_messages(model, system), {"role": "user", "content": text}],
                tools=tools,
                tool_choice=tool_choice,
                enable_thinking=thinking,
                thinking_budget=thinking_budget,
                **sampling,
            )
        if as_json:
            stream.read()
        else:
            print_answer(stream)
    report = describe_answer(stream)
    if as_json:
        print_json(report)
        return
    if stats:
        for name in ("text", "reasoning", "tool_calls", "malformed_tool_calls"):
            del report[name]
        click.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.items()), err=True)
