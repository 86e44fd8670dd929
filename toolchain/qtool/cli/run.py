"""`qtool run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from qtool.cli.output import json_option, print_json
from qtool.cli.sampling_options import sampling_options


@click.command(name="run")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--system", help="System message.")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without the chat template.")
@click.option("--stats", is_flag=True, help="Print token counts and rates on stderr.")
@sampling_options
@json_option
def command(
    *,
    artifact: Path,
    prompt: str,
    system: str | None,
    raw: bool,
    stats: bool,
    context: int | None,
    threads: int | None,
    provider: str | None,
    thinking: bool | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Answer PROMPT with the model in ARTIFACT; the text is printed as it is generated.

    PROMPT is "-" to read it from standard input.
    """
    import qtool_runtime

    if raw and system is not None:
        raise click.UsageError("--system needs the chat template; it does not go with --raw.")
    text = sys.stdin.read() if prompt == "-" else prompt
    with qtool_runtime.load(artifact, context=context, threads=threads, provider=provider) as model:
        if raw:
            chosen = {name: value for name, value in sampling.items() if value is not None}
            stream = model.generate(text, **chosen)
        else:
            messages = [{"role": "system", "content": system}] if system is not None else []
            messages.append({"role": "user", "content": text})
            stream = model.chat(messages, enable_thinking=thinking, **sampling)
        for piece in stream:
            if not as_json:
                click.echo(piece, nl=False)
                sys.stdout.flush()
    result = stream.stats
    report = {
        "text": stream.text,
        "stop_reason": result.stop_reason,
        "prompt_tokens": result.prompt_tokens,
        "tokens": len(result.token_ids),
        "time_to_first_token_seconds": round(result.time_to_first_token, 4),
        "prefill_tokens_per_second": round(result.prefill_rate, 1),
        "decode_tokens_per_second": round(result.decode_rate, 1),
        "kv_cache_bytes": result.cache_bytes,
    }
    if as_json:
        print_json(report)
        return
    click.echo()
    if stats:
        del report["text"]
        click.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.items()), err=True)
