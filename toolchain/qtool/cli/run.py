"""`qtool run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtool.cli.answers import describe_answer, describe_logprobs, opening_messages, print_answer
from qtool.cli.load_options import load_options
from qtool.cli.output import json_option, print_json
from qtool.cli.sampling_options import sampling_options

if TYPE_CHECKING:
    from qtool_runtime import TextStream


@click.command(name="run")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--system", help="System message. [default: the one that is baked in]")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without the chat template.")
@click.option("--stats", is_flag=True, help="Print token counts and rates on stderr.")
@click.option(
    "--candidates", type=click.IntRange(1, 64), default=1, help="Draw so many answers, generated together."
)
@click.option(
    "--logprobs",
    type=click.IntRange(0, 20),
    metavar="N",
    help="With --json: log-probability of each token, and of the N likeliest.",
)
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
    candidates: int,
    logprobs: int | None,
    loading: dict[str, Any],
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
    if logprobs is not None and not as_json:
        raise click.UsageError("--logprobs needs --json.")
    sampling |= {"candidates": candidates, "logprobs": logprobs}
    text = sys.stdin.read() if prompt == "-" else prompt
    with qtool_runtime.load(artifact, **loading) as model:
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
        reports = _print_answers(stream, quiet=as_json)
        if logprobs is not None:
            for report, answer in zip(reports, stream.candidates, strict=True):
                report["logprobs"] = describe_logprobs(answer, model.tokenizer)
    if as_json:
        print_json(reports if candidates > 1 else reports[0])
    elif stats:
        for report in reports:
            click.echo(_one_line(report), err=True)


def _print_answers(stream: TextStream, *, quiet: bool) -> list[dict[str, Any]]:
    """Runs all candidates to their ends, and returns them as data; prints them too unless `quiet`."""
    answers = stream.candidates
    if quiet or len(answers) > 1:
        while answers.step():
            pass
    for number, answer in enumerate(answers, 1):
        if quiet:
            break
        if len(answers) > 1:
            click.echo(f"answer {number} of {len(answers)}", err=True)
        print_answer(answer)
    return [describe_answer(answer) for answer in answers]


def _one_line(report: dict[str, Any]) -> str:
    """Returns counts and rates as text."""
    left_out = ("text", "reasoning", "tool_calls", "malformed_tool_calls")
    facts = (f"{name.replace('_', ' ')} {value}" for name, value in report.items() if name not in left_out)
    return ", ".join(facts)
