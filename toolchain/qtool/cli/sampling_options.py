"""The options of generation that `qtool run` and `qtool chat` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

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
    click.option("--seed", type=int, help="Makes sampling reproducible."),
    click.option("--stop", multiple=True, help="End before this text; may be given several times."),
    click.option(
        "--context",
        type=click.IntRange(min=1),
        help="Tokens to make room for; at most the artifact's context.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="Processor threads. [default: those this process may use]",
    ),
    click.option("--provider", help="Run on this provider instead of the artifact's, such as cpu."),
    click.option(
        "--thinking/--no-thinking", default=None, help="Ask the model to reason first, if its template can."
    ),
)


def sampling_options(function: Function) -> Function:
    """Adds the options to a command, in order."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
