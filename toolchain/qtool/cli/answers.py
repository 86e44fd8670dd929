"""Printing an answer as it comes: its text and tool calls on stdout, the reasoning on stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qtool_runtime import TextStream, ToolCall


def print_answer(stream: TextStream) -> None:
    """Prints the events of a stream to its end.

    A tool call is a line of JSON on stdout. Reasoning is dimmed where stderr is a terminal, and marked with
    the tags of the model's own; what was meant as a call and cannot be made is a warning.
    """
    from qtool_runtime import AnswerText, ReasoningText, ToolCall

    reasoning, open_line = False, True  # stdout ends with a newline, even after an empty answer
    spoken = False
    for event in stream.events():
        if isinstance(event, ReasoningText):
            _print_dimmed(event.text if reasoning else f"<think>\n{event.text}")
            reasoning = True
            continue
        if reasoning:
            _print_dimmed("\n</think>\n")
            reasoning = False
        if isinstance(event, AnswerText):
            click.echo(event.text, nl=False)
            spoken = open_line = True
        else:
            if spoken and open_line:
                click.echo()
            open_line = False
            if isinstance(event, ToolCall):
                click.echo(json.dumps(describe_call(event), ensure_ascii=False))
            else:
                click.echo(f"warning: malformed tool call, {event.reason}: {event.raw.strip()}", err=True)
        sys.stdout.flush()
    if reasoning:
        _print_dimmed("\n")
    if open_line:
        click.echo()


def describe_call(call: ToolCall) -> dict[str, Any]:
    """Returns a call as JSON data."""
    return {"name": call.name, "arguments": call.arguments}


def _print_dimmed(text: str) -> None:
    color = False if os.environ.get("NO_COLOR") else None  # None: as the terminal can
    click.echo(click.style(text, dim=True), nl=False, err=True, color=color)
    sys.stderr.flush()
