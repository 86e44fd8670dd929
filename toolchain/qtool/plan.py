"""The plan before the work: sizes and memory of a build, from the configuration alone.

No tensor is read and no graph is made, so a plan takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from qtool.calibration.text import MOST_TOKENS, PROBED_TOKENS, PROBED_WINDOWS, WINDOW, WINDOWS_AT_ONCE
from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.layout import EMBEDDING, LM_HEAD, layer_shapes, weight_shapes
from qtool.errors import BudgetError
from qtool.phones import PREFIX_MEMORY_SHARE, PhonePlan, plan_phones
from qtool.quantize.formats import Formats, formats_for, multiplied_matrices, stored_matrices
from qtool.quantize.recipes import FAST, Recipe
from qtool_runtime.compatibility import PROVIDERS
from qtool_runtime.manifest import MemoryPlan
from qtool_targets import Target

if TYPE_CHECKING:
    from qtool.bake import SystemPrompt

_FLOAT_BYTES = {"float32": 4, "float16": 2}
_KV_CACHE_BYTES = {**_FLOAT_BYTES, "int8": 1}

# Measured with tests/bench/build.py and tests/bench/memory.py; see tests/bench/NOTES.md.
_SCALE_BYTES = 4
"""Of one channel of an int8 KV cache; its bytes a token are as many as its channels."""
_GRAPH_BYTES, _GRAPH_BYTES_PER_LAYER = 14_000, 11_500
"""Size of model.onnx, manifest.json and the configuration files."""
_OPTIMUM_GRAPH_BYTES_PER_LAYER = 31_000
_TORCH_BYTES, _TRACED_EMBEDDINGS = 250_000_000, 3.4
"""Of the exporter `optimum`: torch and transformers, and copies of the embedding at the peak."""
_OLIVE_BYTES = 700_000_000
"""Olive, torch and transformers, and what GPTQ keeps of the text."""
_BUILD_BASE_BYTES = 180_000_000
"""Python, numpy, onnx_ir and the tokenizer during a build."""
_BUILD_BYTES_PER_THREAD = 24_000_000
"""Rows of a chunk and the temporaries of reading and quantizing them."""
_HESSIANS = 5
"""Copies of a layer's largest Hessian while it is factored."""
_RUNTIME_BYTES, _RUNTIME_BYTES_PER_TOKEN = 75_000_000, 450
"""Python, onnxruntime and numpy on the device; the tokenizer, by the size of its vocabulary."""
_PREFILL_CHUNK = 512
"""Most tokens that one step of the runtime computes (`qtool_runtime.graph`)."""
_PREFILL_CHUNK_ALL_LOGITS = 64
"""The same for graphs that return logits for every token."""
_PACKED_BYTES_PER_GROUP = 8
"""On the CPU, ONNX Runtime repacks integer matrices into buffers of its own, which also hold each group's
scale and sum as float32; the file's scales and zero points stay mapped beside them, its integers do not."""


@dataclass(frozen=True)
class Plan:
    """What a build will need and give. All sizes are in bytes."""

    target: str
    context: int
    system_prompt: int
    """Tokens of the system prompt that is baked in; 0 for none."""
    artifact: int
    disk: int
    """Free space that the build needs: the artifact, once, and calibrated matrices once more; for Olive a
    copy of the model in floats, and what it makes of it."""
    calibrated: int
    """Of the artifact: matrices that are calibrated."""
    build_memory: int
    kv_bytes_per_token: int
    device: MemoryPlan
    phones: tuple[PhonePlan, ...]
    """For the phones that the target names."""

    @property
    def fits(self) -> bool:
        """True when the device's peak is within the target's budget."""
        return self.device.peak <= self.device.budget

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as plain data."""
        return asdict(self) | {"fits": self.fits}

    def check_budget(self) -> None:
        """Refuses a plan that does not fit.

        Raises:
            BudgetError: the planned peak on the device is over the target's budget.
        """
        if self.fits:
            return
        room = self.device.budget - self.device.peak + self.device.kv_cache
        hint = "Choose a smaller model or fewer bits, raise the budget in a target file of your own"
        per_token = self.device.kv_cache // self.context
        if room > per_token:
            hint += f", or pass --context {room // per_token} or less"
        raise BudgetError(
            f"target {self.target}: the device would need {self.device.peak / 1e6:,.0f} MB at a context of"
            f" {self.context} tokens, its budget is {self.device.budget / 1e6:,.0f} MB",
            hint=f"{hint}; --ignore-budget builds all the same.",
        )


def make_plan(
    config: QwenConfig,
    target: Target,
    context: int,
    tokenizer_bytes: int,
    threads: int,
    *,
    recipe: Recipe = FAST,
    formats: Formats | None = None,
    exporter: str = "native",
    system_prompt: SystemPrompt | None = None,
) -> Plan:
    """Predicts what building `config` for `target` takes.

    Args:
        config: the model.
        target: the profile.
        context: tokens to plan the KV cache for.
        tokenizer_bytes: size of the tokenizer's files.
        threads: threads of the build.
        recipe: decides what is calibrated.
        formats: how each matrix is stored; as the target says when absent.
        exporter: "native" or "optimum".
        system_prompt: what is baked in.

    Raises:
        UnsupportedModelError: the target's group size does not fit the model's matrices.
    """
    optimum = exporter == "optimum"
    float_bytes = _FLOAT_BYTES[target.precision.activations]
    formats = formats_for(config, target) if formats is None else formats
    weights = sum(size for _, size in stored_sizes(config, target, formats))
    rotary = 0 if optimum else context * config.head_dim * float_bytes
    graph_bytes_per_layer = _OPTIMUM_GRAPH_BYTES_PER_LAYER if optimum else _GRAPH_BYTES_PER_LAYER
    graph = _GRAPH_BYTES + graph_bytes_per_layer * config.num_hidden_layers
    if target.precision.kv_cache == "int8":
        graph += kv_bytes_per_token(config, target) * _SCALE_BYTES
    artifact = weights + rotary + graph + tokenizer_bytes
    per_token = kv_bytes_per_token(config, target)
    device = device_memory(config, target, formats, context, weights + rotary, concatenates=optimum)
    build_memory = _BUILD_BASE_BYTES + threads * _BUILD_BYTES_PER_THREAD + 4 * tokenizer_bytes
    if optimum:
        build_memory += _trace_memory(config, float_bytes)
    runs = 0
    if target.precision.kv_cache == "int8":
        runs = _calibration_memory(config, target, device, threads)
    calibrated = copies = 0
    if recipe.runs_olive(target):
        copies = float_bytes * _parameters(config) + artifact
        runs = max(runs, _olive_memory(config, float_bytes))
    if recipe.calibrates(formats):
        calibrated = sum(_calibrated_sizes(config, target, formats))
        runs = max(runs, _layer_memory(config, threads))
    if recipe.room is not None and any(scheme.is_integer for scheme in formats.values()):
        runs = max(runs, _probing_memory(config))
    tokens = 0
    if system_prompt is not None:
        runs = max(runs, device.weights + device.activations + device.runtime)
        tokens, size = len(system_prompt.token_ids), system_prompt.bytes(config, target)
        artifact, device = artifact + size, with_system_prompt(device, size)
    phones = plan_phones(
        target.memory.phones_gb,
        device,
        context,
        config.max_position_embeddings,
        growth=rotary // context,
    )
    return Plan(
        target.name,
        context,
        tokens,
        artifact,
        artifact + calibrated + copies,
        calibrated,
        build_memory + runs,
        per_token,
        device,
        phones,
    )


def with_system_prompt(memory: MemoryPlan, size: int) -> MemoryPlan:
    """Returns the memory plan with the files of a baked system prompt, which are mapped like the weights."""
    return replace(memory, weights=memory.weights + size, peak=memory.peak + size)


def _trace_memory(config: QwenConfig, float_bytes: int) -> int:
    """Predicts what torch takes for a trace: it keeps a copy of every matrix and several of the embedding."""
    shapes = weight_shapes(config)
    embedding = prod(shapes[EMBEDDING])
    others = sum(prod(shape) for name, shape in shapes.items() if name not in (EMBEDDING, LM_HEAD))
    return _TORCH_BYTES + int((_TRACED_EMBEDDINGS * embedding + others) * float_bytes)


def _olive_memory(config: QwenConfig, float_bytes: int) -> int:
    """Predicts what Olive takes: the model in floats, before and after, and Hessians of the widest matrix."""
    features = max(config.hidden_size, config.intermediate_size)
    return _OLIVE_BYTES + 2 * float_bytes * _parameters(config) + 4 * _HESSIANS * features**2


def _parameters(config: QwenConfig) -> int:
    return sum(prod(shape) for shape in weight_shapes(config).values())


def _calibration_memory(config: QwenConfig, target: Target, device: MemoryPlan, threads: int) -> int:
    """Predicts what running the model takes: what it takes on the device, but for each thread a window."""
    channels = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    window = device.activations + WINDOW * channels * _FLOAT_BYTES[target.precision.activations]
    return device.weights + device.runtime + threads * window


def _calibrated_sizes(config: QwenConfig, target: Target, formats: Formats) -> Iterator[int]:
    """Yields the bytes of every matrix that a calibrating recipe computes before the weights are written."""
    shapes = weight_shapes(config)
    for name, scheme in multiplied_matrices(config, formats):
        if scheme.loses_by_rounding:
            rows, columns = shapes[name]
            yield scheme.nbytes(rows, columns, scale_bytes(target))


def _layer_memory(config: QwenConfig, threads: int) -> int:
    """Predicts what calibrating matrices takes: a layer, its largest Hessian several times, hidden states."""
    layer = sum(prod(shape) for shape in layer_shapes(config).values())
    features = max(config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    hessians = (_HESSIANS + threads) * features**2
    hidden = 2 * MOST_TOKENS * config.hidden_size
    activations = threads * WINDOWS_AT_ONCE * WINDOW * (2 * config.hidden_size + 3 * config.intermediate_size)
    return 4 * (layer + hessians + hidden + activations)


def _probing_memory(config: QwenConfig) -> int:
    """Predicts what measuring sensitivities takes: hidden states for each matrix, and logits of one model."""
    shapes = layer_shapes(config)
    layer = sum(prod(shape) for shape in shapes.values())
    models = 2 + config.num_hidden_layers * sum(len(shape) == 2 for shape in shapes.values())
    tokens = PROBED_WINDOWS * PROBED_TOKENS
    return 4 * (2 * layer + tokens * (models * config.hidden_size + config.vocab_size))


def stored_sizes(config: QwenConfig, target: Target, formats: Formats) -> Iterator[tuple[str, int]]:
    """Yields name and bytes of every weight that the artifact holds; a tied LM head only if it differs."""
    for name, shape in weight_shapes(config).items():
        if name not in formats:
            yield name, prod(shape) * scale_bytes(target)
    for name, (rows, columns), scheme in stored_matrices(config, formats):
        scheme.check_columns(name, columns)
        yield name, scheme.nbytes(rows, columns, scale_bytes(target))


def scale_bytes(target: Target) -> int:
    """Returns the size of a float in the artifact, such as a group's scale."""
    return _FLOAT_BYTES[target.precision.activations]


def kv_bytes_per_token(config: QwenConfig, target: Target) -> int:
    """Returns the bytes of keys and values that one token adds to the cache."""
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads
    return heads * config.head_dim * _KV_CACHE_BYTES[target.precision.kv_cache]


def device_memory(
    config: QwenConfig,
    target: Target,
    formats: Formats,
    context: int,
    data_bytes: int,
    *,
    concatenates: bool = False,
) -> MemoryPlan:
    """Plans the device's memory at the default context.

    Args:
        config: the model.
        target: the profile.
        formats: how each matrix is stored.
        context: tokens in the KV cache.
        data_bytes: size of the artifact's data file.
        concatenates: the graph returns longer keys and values instead of updating them in place, computes
            attention in basic operators, and returns logits for every token.
    """
    weights = data_bytes + _packing_bytes(config, target, formats)
    cache = context * kv_bytes_per_token(config, target)
    remembered = _prefix_memory(cache, target)
    float_bytes = _FLOAT_BYTES[target.precision.activations]
    # The widest moment of a prefill step: residual, gate, up and their product, all for one chunk.
    width = 2 * config.hidden_size + 3 * config.intermediate_size
    at_once = PROVIDERS[target.execution.provider].reads_one_behind_others  # the whole prompt
    chunk, logits_rows = context if at_once else min(_PREFILL_CHUNK, context), 1
    attention = 0
    if concatenates:
        cache *= 2  # the last run's and this run's exist at the same time
        chunk = logits_rows = min(_PREFILL_CHUNK_ALL_LOGITS, context)
        # Scores (three in a row), and one layer's keys and values repeated for every query head.
        attention = config.num_attention_heads * context * (3 * chunk + 2 * config.head_dim) * float_bytes
    activations = chunk * width * float_bytes + logits_rows * config.vocab_size * 4 + attention
    runtime = _RUNTIME_BYTES + config.vocab_size * _RUNTIME_BYTES_PER_TOKEN
    return MemoryPlan(
        weights=weights,
        kv_cache=cache,
        prefix_memory=remembered,
        activations=activations,
        runtime=runtime,
        peak=weights + cache + remembered + activations + runtime,
        budget=target.memory.budget_mb * 1_000_000,
    )


def _prefix_memory(cache: int, target: Target) -> int:
    """Returns the default bound of the prefix memory, in bytes.

    None where the KV cache is not in the processor's own memory, and has to be copied from elsewhere.
    """
    if target.execution.provider != "cpu":
        return 0
    return min(cache, target.memory.budget_mb * 1_000_000 // PREFIX_MEMORY_SHARE)


def _packing_bytes(config: QwenConfig, target: Target, formats: Formats) -> int:
    """Returns what a CPU provider's own copies of the weight matrices add to the data file."""
    if target.execution.provider not in ("cpu", "webgpu"):
        return 0
    added = 0
    shapes = weight_shapes(config)
    for name, scheme in multiplied_matrices(config, formats):
        rows, columns = shapes[name]
        if scheme.is_integer:
            added += rows * (columns // scheme.group_size) * _PACKED_BYTES_PER_GROUP
        elif name == EMBEDDING:  # tied: it is looked up too, in the file's pages
            added += rows * columns * scheme.bits // 8
    return added
