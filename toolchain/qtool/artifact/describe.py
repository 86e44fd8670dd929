"""Fills the manifest from the checkpoint, the target and the finished graph."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from importlib.metadata import version
from math import prod
from typing import Any

import onnx_ir as ir

from qtool.artifact.layout import Layout
from qtool.checkpoint import Checkpoint, QwenConfig
from qtool.checkpoint.layout import weight_shapes
from qtool.errors import GenerationError, SourceError
from qtool.models import decoder
from qtool.plan import device_memory, kv_bytes_per_token
from qtool.quantize.formats import Formats
from qtool.quantize.schemes import Role, role_of
from qtool.quantize.storage import IntegerStorage
from qtool.storage import FloatStorage
from qtool_runtime.compatibility import import_onnxruntime
from qtool_runtime.manifest import (
    FORMAT_VERSION,
    Calibration,
    FileEntry,
    Generation,
    Graph,
    KvCache,
    Manifest,
    ModelInfo,
    OperatorSet,
    QuantizedGroup,
    Source,
)
from qtool_runtime.sampling import SamplingOptions
from qtool_targets import Target

MODEL_FILE = "model.onnx"

_Kind = tuple[Role, int, int | None, bool | None, str]
"""Of matrices: role, bits, group size, whether symmetric, algorithm."""


def describe(
    *,
    checkpoint: Checkpoint,
    target: Target,
    formats: Formats,
    context: int,
    exporter: str,
    model: ir.Model,
    layout: Layout,
    files: tuple[FileEntry, ...],
    generation: Generation,
    calibration: Calibration | None,
) -> Manifest:
    """Returns the manifest of an artifact whose files are already written."""
    config = checkpoint.config
    cache = kv_cache(config, target, model)
    concatenates = cache.update == "concatenate"
    return Manifest(
        format_version=FORMAT_VERSION,
        name=checkpoint.name,
        context=context,
        model=model_info(config),
        source=Source(checkpoint.kind, checkpoint.id, checkpoint.revision, checkpoint.sha256()),
        target=target.to_dict(),
        tools=_tools(exporter, checkpoint, calibrated=calibration is not None),
        files=files,
        operators=operator_sets(model),
        graph=graph_interface(model, target),
        kv_cache=cache,
        calibration=calibration,
        memory=device_memory(config, target, formats, context, layout.size, concatenates=concatenates),
        quantization=_quantization(layout, config),
        spent_bits=None,
        generation=generation,
        baked_prompt=None,
        quality=None,
    )


def model_info(config: QwenConfig) -> ModelInfo:
    """Returns the shape of the network as the manifest has it."""
    return ModelInfo(
        architecture=config.model_type,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        parameters=sum(prod(shape) for shape in weight_shapes(config).values()),
        tie_word_embeddings=config.tie_word_embeddings,
    )


def _tools(exporter: str, checkpoint: Checkpoint, *, calibrated: bool) -> dict[str, str]:
    """Versions of what shaped the bytes."""
    packages = ["qtool-edge", "onnx-ir", "numpy"]
    if exporter == "optimum":
        packages += ["optimum", "optimum-onnx", "torch", "transformers"]
    if checkpoint.quantization is not None:
        packages += checkpoint.quantization.made_by
    versions = {name: version(name) for name in packages}
    if calibrated:  # its package has several names, one for each kind of device
        versions["onnxruntime"] = str(import_onnxruntime().__version__)
    return {"exporter": exporter} | versions


def operator_sets(model: ir.Model) -> tuple[OperatorSet, ...]:
    """Counts the operators of a graph by domain, domains and operators sorted."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for node in model.graph:
        counts[node.domain][node.op_type] += 1
    versions = model.graph.opset_imports
    return tuple(
        OperatorSet(domain or "ai.onnx", versions[domain], dict(sorted(counts[domain].items())))
        for domain in sorted(counts)
    )


def graph_interface(model: ir.Model, target: Target) -> Graph:
    """Says how to drive the graph."""
    inputs = tuple(str(value.name) for value in model.graph.inputs)
    return Graph(
        file=MODEL_FILE,
        provider=target.execution.provider,
        minimum_onnxruntime=minimum_onnxruntime(model, target),
        inputs=inputs,
        outputs=tuple(str(value.name) for value in model.graph.outputs),
        past_key=decoder.PAST_KEY,
        past_value=decoder.PAST_VALUE,
        present_key=decoder.PRESENT_KEY,
        present_value=decoder.PRESENT_VALUE,
        logits_rows_input=decoder.LOGITS_ROWS_INPUT if decoder.LOGITS_ROWS_INPUT in inputs else None,
    )


def minimum_onnxruntime(model: ir.Model, target: Target) -> str:
    """Returns the target's version, or a later one where earlier kernels would compute something else."""
    minimum = target.execution.minimum_onnxruntime
    versions = [minimum, *(_needed_version(node) for node in model.graph)]
    return max(versions, key=lambda text: [int(part) for part in text.split(".")])


def _needed_version(node: ir.Node) -> str:
    """Returns the version before which the CPU kernels lack this node, or compute something else."""
    if node.op_type == "MatMulNBits" and node.attributes.get_int("bits", 4) == 2:
        return "1.28"  # earlier ones refuse 2 bits, or are 200 times slower
    return "1.27" if _needs_1_27(node) else "0"


def _needs_1_27(node: ir.Node) -> bool:
    if node.op_type == "GroupQueryAttention":
        return "k_quant_type" in node.attributes  # they take float keys and values only
    if node.op_type == "GatherBlockQuantized" and node.attributes.get_int("bits", 4) == 4:
        # They misread 4-bit zero points of rows with an odd number of groups.
        scale, *zero_point = node.inputs[2:]
        shape = None if scale is None else scale.shape
        return bool(zero_point) and shape is not None and shape.numpy()[1] % 2 == 1
    return False


def kv_cache(config: QwenConfig, target: Target, model: ir.Model) -> KvCache:
    """Says what keys and values are cached, and how the graph updates them."""
    in_place = any(node.op_type == "GroupQueryAttention" for node in model.graph)
    return KvCache(
        update="in_place" if in_place else "concatenate",
        dtype=target.precision.kv_cache,
        layers=config.num_hidden_layers,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        bytes_per_token=kv_bytes_per_token(config, target),
    )


def _quantization(layout: Layout, config: QwenConfig) -> tuple[QuantizedGroup, ...]:
    """Lists the stored matrices by kind and scheme."""
    groups: dict[_Kind, list[IntegerStorage | FloatStorage]] = {}
    for placement in layout.placements.values():
        storage = placement.storage
        if (
            not isinstance(storage, IntegerStorage | FloatStorage)
            or (role := role_of(storage.weight.name)) is None
        ):
            continue
        if isinstance(storage, IntegerStorage):
            scheme = storage.scheme
            kind: _Kind = (role, scheme.bits, scheme.group_size, scheme.symmetric, scheme.algorithm)
        else:
            kind = (role, storage.dtype.bitwidth, None, None, "none")
        groups.setdefault(kind, []).append(storage)
    order = list(Role)
    return tuple(
        QuantizedGroup(
            *kind,
            tuple(storage.weight.name for storage in storages),
            sum(part.nbytes for storage in storages for part in storage.parts),
        )
        for kind, storages in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    )


def generation_defaults(config: QwenConfig, files: dict[str, bytes]) -> Generation:
    """Reads sampling defaults from generation_config.json; without one, generation is greedy.

    Raises:
        SourceError: a default is not a number that the runtime can sample with.
    """
    document: dict[str, Any] = json.loads(files.get("generation_config.json", b"{}"))

    def number(key: str, default: float) -> float:
        value = document.get(key)
        return default if value is None else value

    try:
        options = SamplingOptions(
            temperature=number("temperature", 1.0),
            top_k=int(number("top_k", 0)),
            top_p=number("top_p", 1.0),
            repetition_penalty=number("repetition_penalty", 1.0),
        )
    except (GenerationError, ValueError, TypeError, OverflowError) as error:
        raise SourceError(
            f"generation_config.json has sampling defaults that cannot be used: {error}",
            hint="Compare it with the file that the model was published with.",
        ) from error
    return Generation(
        bos_token_id=config.bos_token_id,
        eos_token_ids=config.eos_token_ids,
        pad_token_id=config.pad_token_id,
        do_sample=document.get("do_sample") is True,
        temperature=float(options.temperature),
        top_k=options.top_k,
        top_p=float(options.top_p),
        repetition_penalty=float(options.repetition_penalty),
    )
