"""The options of generation that `qtool run` and `qtool chat` share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


def _read_bias(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[int, float] | None:
    """Reads ID:VALUE pairs."""
    bias = {}
    for text in values:
        token, _, value = text.partition(":")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not ID:VALUE, such as 1000:-5.") from None
    return bias or None


def _read_tools(context: click.Context, parameter: click.Parameter, path: Path | None) -> list[Any] | None:
    """Reads a JSON file that holds a list."""
    if path is None:
        return None
    try:
        tools = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise click.BadParameter(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(tools, list):
        raise click.BadParameter(f"{path} holds no list of functions.")
    return tools


def _read_text(context: click.Context, parameter: click.Parameter, path: Path | None) -> str | None:
    """Reads a file; what it says is checked where it is used."""
    try:
        return None if path is None else path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path} cannot be read: {error}") from None


_OPTIONS = (
    click.option(
        "--max-tokens",
        "-n",
        type=click.IntRange(min=1),
        help="Most tokens to generate. [default: the context]",
    ),
    click.option(
        "--temperature", type=float, help="0 takes the most likely token; the model's default otherwise."
    ),
    click.option("--top-k", type=int, help="Choose among the K most likely tokens."),
    click.option("--top-p", type=float, help="Choose among the most likely tokens of total probability P."),
    click.option("--min-p", type=float, help="Leave out tokens below P times the likeliest."),
    click.option("--repetition-penalty", type=float, help="Divides logits of tokens used before."),
    click.option("--presence-penalty", type=float, help="Lowers logits of tokens in the answer, once."),
    click.option("--frequency-penalty", type=float, help="Lowers them as often as the token is there."),
    click.option(
        "--logit-bias",
        multiple=True,
        metavar="ID:VALUE",
        callback=_read_bias,
        help="Adds VALUE to the logit of a token; may be given several times.",
    ),
    click.option(
        "--ban",
        "banned_ids",
        type=int,
        multiple=True,
        metavar="ID",
        help="Never choose this token; may be given several times.",
    ),
    click.option("--seed", type=int, help="Makes sampling reproducible."),
    click.option("--stop", multiple=True, help="End before this text; may be given several times."),
    click.option(
        "--stop-id",
        "stop_ids",
        type=int,
        multiple=True,
        help="End at this token; may be given several times.",
    ),
    click.option("--ignore-eos", is_flag=True, help="Go on after the model's end tokens."),
    click.option("--deadline", type=float, metavar="SECONDS", help="End the answer after this time."),
    click.option(
        "--when-full",
        type=click.Choice(["error", "stop", "drop_oldest"]),
        help="When the context is full: refuse beforehand, stop there, or drop the oldest turns.",
    ),
    click.option(
        "--speculate", is_flag=True, help="Read ahead where the text repeats itself: quicker for edits."
    ),
    click.option(
        "--thinking/--no-thinking", default=None, help="Ask the model to reason first, if its template can."
    ),
    click.option(
        "--thinking-budget",
        type=click.IntRange(min=0),
        metavar="TOKENS",
        help="End the reasoning after so many tokens; 0 for none.",
    ),
    click.option(
        "--tools",
        type=click.Path(path_type=Path),
        metavar="FILE",
        callback=_read_tools,
        help="Functions that the model may call: a JSON file with a list of their schemas.",
    ),
    click.option(
        "--tool-choice",
        metavar="NAME",
        help='Call this function, or any ("required"), instead of an answer. [default: auto]',
    ),
    click.option(
        "--json-schema",
        type=click.Path(path_type=Path),
        metavar="FILE",
        callback=_read_text,
        help="Answer in JSON that matches this schema.",
    ),
    click.option("--regex", help="Answer with text that matches this regular expression."),
    click.option(
        "--grammar",
        type=click.Path(path_type=Path),
        metavar="FILE",
        callback=_read_text,
        help="Answer with text that follows this Lark grammar.",
    ),
)


def sampling_options(function: Function) -> Function:
    """Adds the options to a command, in order."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
