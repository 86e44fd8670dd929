"""Options of `qtool build` that compare an artifact with its source."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtool_targets import Gates

if TYPE_CHECKING:
    from qtool.jobs import Evaluation


_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+) ?(MB|GB)?", re.IGNORECASE | re.ASCII)


def megabytes(value: str | float) -> float:
    """Reads a size in units of 10^6 bytes: "300", "300MB", "1.2 GB"."""
    found = _SIZE.fullmatch(str(value))
    number = float(found[1]) if found else 0.0
    if found is None or number == 0:
        raise click.BadParameter(f"{value!r} is not a size such as 300, 300MB or 1.2GB")
    return number * (1000 if (found[2] or "").upper() == "GB" else 1)


@dataclass(frozen=True)
class QualityOptions:
    """What was asked for.

    Attributes:
        evaluate: whether to measure, even if no gate asks for it.
        text: file to compare on; None for the text that ships with qtool.
        tokens: predictions to compare; None for the usual number.
        gates: what artifacts have to reach.
    """

    evaluate: bool
    text: Path | None
    tokens: int | None
    gates: Gates

    def evaluation(self) -> Evaluation | None:
        """Returns how to compare, if these options say anything about it.

        Raises:
            SourceError: the text cannot be used.
        """
        if not self.evaluate and self.text is None and self.tokens is None:
            return None
        from qtool.jobs import Evaluation
        from qtool.plain_text import read_plain_text

        return Evaluation(None if self.text is None else read_plain_text(self.text), self.tokens)


def quality_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command, which gets them as one argument, `quality`."""
    options = (
        click.option(
            "--evaluate",
            is_flag=True,
            help="Compare the artifact with its source (see `qtool eval`), and note the figures in its"
            " manifest.",
        ),
        click.option(
            "--evaluation-text",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Plain text to compare on; implies --evaluate. [default: one that ships with qtool]",
        ),
        click.option(
            "--evaluation-tokens",
            type=click.IntRange(min=64),
            metavar="TOKENS",
            help="Predictions to compare; implies --evaluate. [default: 4096, or fewer where the text is"
            " shorter]",
        ),
        click.option(
            "--max-kl",
            type=click.FloatRange(min=0, min_open=True),
            metavar="NATS",
            help="Fail if the mean KL divergence to the source is larger. Implies --evaluate.",
        ),
        click.option(
            "--min-top1",
            type=click.FloatRange(min=0, min_open=True, max=1),
            metavar="SHARE",
            help="Fail if artifact and source find the same token the most probable less often; 0 to 1."
            " Implies --evaluate.",
        ),
        click.option(
            "--max-size",
            type=megabytes,
            metavar="MB",
            help="Fail if the artifact is larger; 1.2GB is valid, too. The recipe best spends what is left"
            " below that.",
        ),
    )

    @functools.wraps(command)
    def gathered(
        *,
        evaluate: bool,
        evaluation_text: Path | None,
        evaluation_tokens: int | None,
        max_kl: float | None,
        min_top1: float | None,
        max_size: float | None,
        **others: Any,
    ) -> None:
        gates = Gates(max_kl, min_top1, max_size)
        command(quality=QualityOptions(evaluate, evaluation_text, evaluation_tokens, gates), **others)

    decorated: Callable[..., None] = gathered
    for option in reversed(options):
        decorated = option(decorated)
    return decorated
