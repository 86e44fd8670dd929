"""Printing an answer as it comes: its text and tool calls on stdout, the reasoning on stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qtool_runtime import Model, TextStream, ToolCall
    from qtool_runtime.text import Tokenizer


def opening_messages(model: Model, system: str | None) -> list[dict[str, Any]]:
    """Returns what a conversation starts with: a system message, by default the one that is baked in."""
    text = model.baked_prompt if system is None else system
    return [] if text is None else [{"role": "system", "content": text}]


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


def describe_answer(stream: TextStream) -> dict[str, Any]:
    """Returns an answer that has ended as JSON data: its parts, why it ended, counts and rates."""
    result = stream.stats
    return {
        "text": stream.text,
        "reasoning": stream.reasoning,
        "tool_calls": [describe_call(call) for call in stream.tool_calls],
        "malformed_tool_calls": [
            {"raw": call.raw, "reason": call.reason} for call in stream.malformed_tool_calls
        ],
        "stop_reason": result.stop_reason,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "tokens": len(result.token_ids),
        "time_to_first_token_seconds": round(result.time_to_first_token, 4),
        "prefill_tokens_per_second": round(result.prefill_rate, 1),
        "decode_tokens_per_second": round(result.decode_rate, 1),
        "kv_cache_bytes": result.cache_bytes,
        "drafted_tokens": result.drafted_tokens,
        "accepted_tokens": result.accepted_tokens,
    }


def describe_logprobs(stream: TextStream, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Returns the records of an answer's tokens as JSON data; part of a character reads as U+FFFD."""

    def describe(token_id: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.token_bytes(token_id).decode("utf-8", "replace")
        return {"token_id": token_id, "text": text, "logprob": round(logprob, 5)}

    return [
        describe(record.token_id, record.logprob)
        | {"alternatives": [describe(other.token_id, other.logprob) for other in record.alternatives]}
        for record in stream.logprobs
    ]


def describe_call(call: ToolCall) -> dict[str, Any]:
    """Returns a call as JSON data."""
    return {"name": call.name, "arguments": call.arguments}


def _print_dimmed(text: str) -> None:
    color = False if os.environ.get("NO_COLOR") else None  # None: as the terminal can
    click.echo(click.style(text, dim=True), nl=False, err=True, color=color)
    sys.stderr.flush()
