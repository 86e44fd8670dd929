"""`qtool targets`."""

from __future__ import annotations

import click

import qtool_targets
from qtool.cli.output import json_option, print_facts, print_json, print_table
from qtool_targets import Gates, Target


@click.command(name="targets")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List hardware profiles, or show the one called NAME (or in the file NAME.toml)."""
    if name is not None:
        target = qtool_targets.load(name)
        print_json(target.to_dict()) if as_json else _print_target(target)
        return
    targets = [qtool_targets.load(each) for each in qtool_targets.names()]
    if as_json:
        print_json([target.to_dict() for target in targets])
        return
    header = ("target", "provider", "weights", "activations", "context", "budget", "description")
    print_table(header, [_row(target) for target in targets])
    click.echo()
    print_table(("target", "executed by"), [(target.name, _evidence(target)) for target in targets])


def _row(target: Target) -> tuple[str, ...]:
    return (
        target.name,
        target.execution.provider + (" (legacy)" if target.legacy else ""),
        _weights(target),
        target.precision.activations,
        f"{target.memory.context:,}",
        f"{target.memory.budget_mb:,} MB",
        target.description,
    )


def _weights(target: Target) -> str:
    weights = target.weights
    if weights.bits > 8:
        return f"float{weights.bits}"
    kind = "symmetric" if weights.symmetric else "asymmetric"
    return f"int{weights.bits}, groups of {weights.group_size}, {kind}"


def _evidence(target: Target) -> str:
    """Says what has executed the target's artifacts, and what else is known of them."""
    executed = "; ".join(target.tested_on) or f"nothing yet on {target.execution.provider}"
    return f"{executed} ({'; '.join(target.checked)})" if target.checked else executed


def _gates(gates: Gates) -> str:
    asked = [
        None if gates.max_kl is None else f"KL at most {gates.max_kl:g}",
        None if gates.min_top1 is None else f"top-1 at least {gates.min_top1:.1%}",
        None if gates.max_size_mb is None else f"size at most {gates.max_size_mb:,g} MB",
    ]
    return ", ".join(filter(None, asked)) or "none"


def _print_target(target: Target) -> None:
    weights = target.weights
    print_facts(
        [
            ("target", target.name),
            ("description", target.description),
            ("provider", target.execution.provider + (" (legacy upstream)" if target.legacy else "")),
            ("onnxruntime", f">= {target.execution.minimum_onnxruntime}"),
            ("weights", _weights(target)),
            ("embedding", f"{weights.embedding_bits or weights.bits} bits"),
            ("LM head", f"{weights.lm_head_bits or weights.bits} bits"),
            ("activations", target.precision.activations),
            ("KV cache", target.precision.kv_cache),
            ("context", f"{target.memory.context:,} tokens"),
            ("memory budget", f"{target.memory.budget_mb:,} MB"),
            ("gates", _gates(target.gates)),
            ("executed by", "\n".join(target.tested_on) or f"nothing yet on {target.execution.provider}"),
            ("checked", "\n".join(target.checked) or "-"),
        ]
    )
