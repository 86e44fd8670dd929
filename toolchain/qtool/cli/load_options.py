"""The options of loading an artifact that `qtool run`, `qtool chat` and `qtool health` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from qtool_runtime.engines import ENGINES
from qtool_runtime.kernels import AUTO

_NAMES = ("engine", "context", "threads", "spin", "provider", "kernels", "exact_drafts")

kernels_option = click.option(
    "--kernels",
    metavar="auto|off|NAME",
    default=AUTO,
    show_default=True,
    help="What computes on the CPU: `off` for ONNX Runtime's own kernels, or an instruction set of the"
    " package qtool-kernels.",
)

_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default=ENGINES[0],
        show_default=True,
        help="What runs the model; `genai` is onnxruntime-genai.",
    ),
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
    click.option(
        "--spin",
        type=click.IntRange(min=0),
        metavar="MICROSECONDS",
        help="How long threads without work stay awake; 0 for never. [default: 20]",
    ),
    click.option("--provider", help="Run on this provider instead of the artifact's, such as cpu."),
    kernels_option,
    click.option(
        "--exact-drafts",
        is_flag=True,
        help="Make answers with drafts those without, to the last bit, also over ONNX Runtime's own kernels.",
    ),
)


def load_options(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command, in order; it gets them as `loading`, for `qtool_runtime.load`."""

    @functools.wraps(function)
    def with_loading(**options: Any) -> None:
        loading = {name: options.pop(name) for name in _NAMES}
        function(loading=loading, **options)

    for option in reversed(_OPTIONS):
        with_loading = option(with_loading)
    return with_loading
