"""`qtool inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qtool.cli.output import (
    json_option,
    megabytes,
    phone_facts,
    print_facts,
    print_json,
    print_table,
    quality_line,
)
from qtool.phones import PhonePlan, plan_phones
from qtool_runtime import manifest
from qtool_runtime.compatibility import PROVIDERS
from qtool_runtime.kernels import AUTO, choose_kernels
from qtool_runtime.manifest import Manifest, MemoryPlan

_LAYERS = "model.layers."


@click.command(name="inspect")
@click.argument("artifact", type=click.Path(path_type=Path))
@json_option
def command(artifact: Path, as_json: bool) -> None:
    """Show what is inside ARTIFACT: model, files, operators, quantization, memory plan."""
    document = manifest.read(artifact)
    if as_json:
        print_json(json.loads(document.to_json()))
        return
    _print_summary(document)
    click.echo()
    rows = [(entry.path, megabytes(entry.size), entry.sha256[:16]) for entry in document.files]
    print_table(("file", "size", "SHA-256"), rows)
    click.echo()
    _print_quantization(document)
    click.echo()
    for operators in document.operators:
        listed = ", ".join(f"{name} x{count}" for name, count in operators.operators.items())
        click.echo(f"{operators.domain} {operators.version}: {listed}")


def _print_summary(document: Manifest) -> None:
    model, memory = document.model, document.memory
    revision = f" @ {document.source.revision}" if document.source.revision else ""
    quality, baked = document.quality, document.baked_prompt
    print_facts(
        [
            ("name", document.name),
            (
                "model",
                f"{model.architecture}, {model.parameters / 1e6:,.1f} M parameters,"
                f" {model.num_hidden_layers} layers",
            ),
            ("source", f"{document.source.id} ({document.source.kind}){revision}"),
            ("target", str(document.target.get("name"))),
            ("provider", f"{document.graph.provider}, onnxruntime >= {document.graph.minimum_onnxruntime}"),
            ("kernels", _kernels(document)),
            ("context", f"{document.context:,} tokens"),
            ("size", megabytes(sum(entry.size for entry in document.files))),
            ("KV cache", _kv_cache(document)),
            *_calibration(document),
            *_spent_bits(document),
            ("memory", _memory(memory)),
            *phone_facts(_phones(document)),
            *([("system prompt", f"{baked.tokens:,} tokens baked in")] if baked else []),
            ("quality", quality_line(quality) if quality else "not measured; see `qtool build --evaluate`"),
            ("tools", ", ".join(f"{name} {value}" for name, value in document.tools.items())),
        ]
    )


def _kernels(document: Manifest) -> str:
    """Says what would compute on this machine, without loading anything."""
    provider = PROVIDERS.get(document.graph.provider)
    if provider is None:
        return "of a provider that this version does not know"
    kernels = choose_kernels(AUTO, document, provider)
    return f"{kernels.name} on this machine: {kernels.reason}"


def _kv_cache(document: Manifest) -> str:
    cache = document.kv_cache
    update = cache.update.replace("_", " ")
    return f"{cache.dtype}, {cache.bytes_per_token:,} bytes a token, updated {update}"


def _calibration(document: Manifest) -> list[tuple[str, str]]:
    calibration = document.calibration
    if calibration is None:
        return []
    return [("calibrated", f"on {calibration.tokens:,} tokens of the text {calibration.sha256[:16]}")]


def _spent_bits(document: Manifest) -> list[tuple[str, str]]:
    spent = document.spent_bits
    if spent is None:
        return []
    bits = 8 * spent.bytes / spent.weights
    return [("bits", f"{bits:.2f} a weight, {megabytes(spent.bytes)} of {megabytes(spent.budget)}")]


def _memory(plan: MemoryPlan) -> str:
    parts = {
        "weights": plan.weights,
        "KV cache": plan.kv_cache,
        "prefix memory": plan.prefix_memory,
        "activations": plan.activations,
        "runtime": plan.runtime,
    }
    summed = " + ".join(f"{name} {megabytes(size)}" for name, size in parts.items())
    return f"{megabytes(plan.peak)} peak = {summed}; budget {megabytes(plan.budget)}"


def _phones(document: Manifest) -> tuple[PhonePlan, ...]:
    """Plans for the phones that the target names; nobody has checked how the manifest does that."""
    memory = document.target.get("memory")
    sizes = memory.get("phones_gb") if isinstance(memory, dict) else None
    if not isinstance(sizes, list) or not all(type(size) is int and 0 < size <= 64 for size in sizes):
        return ()
    return plan_phones(sizes, document.memory, document.context, document.context)


def _print_quantization(document: Manifest) -> None:
    rows = []
    for group in document.quantization:
        kind = "" if group.symmetric is None else ("symmetric" if group.symmetric else "asymmetric")
        size = str(group.group_size or "")
        rows.append(
            (
                group.group,
                str(group.bits),
                size,
                kind,
                _algorithm(group.algorithm),
                str(len(group.tensors)),
                megabytes(group.bytes),
            )
        )
    print_table(("weights", "bits", "group", "kind", "algorithm", "tensors", "size"), rows)
    if document.spent_bits is not None:
        click.echo()
        print_table(("matrix", "bits", "group", "layers"), _choices(document))


def _choices(document: Manifest) -> list[tuple[str, ...]]:
    """Returns a row for each kind of matrix and format, with the layers where it was chosen."""
    layers: dict[tuple[str, int, int], list[int]] = {}
    for group in document.quantization:
        for name in group.tensors:
            _, _, index, matrix = name.split(".", 3) if name.startswith(_LAYERS) else ("", "", "-1", name)
            key = (matrix.removesuffix(".weight"), -group.bits, group.group_size or 0)
            layers.setdefault(key, []).append(int(index))
    return [
        (matrix, str(-bits), str(size or ""), _ranges(sorted(found)))
        for (matrix, bits, size), found in sorted(layers.items())
    ]


def _ranges(numbers: list[int]) -> str:
    """Returns "0-2, 5" for 0, 1, 2, 5; nothing for -1, which stands for no layer."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        elif number >= 0:
            ranges.append([number])
    return ", ".join("-".join(map(str, ends)) for ends in ranges)


def _algorithm(name: str) -> str:
    """Returns how integers were chosen, in words."""
    from qtool.checkpoint.quantization import TAKEN_OVER

    taken = name.removeprefix(TAKEN_OVER)
    return name if taken == name else f"{taken}, taken over from the source"
