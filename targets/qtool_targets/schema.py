"""What a hardware profile says: frozen records, and the strict reader that fills them from TOML.

A profile file has the top-level keys of `Target` and one table for each of its records:

    name = "arm64-int4"
    description = "64-bit Arm boards and servers, CPU"
    tested_on = ["onnxruntime 1.31.1, x86-64"]    what has executed its artifacts
    checked = []     what else was checked of them; may be absent

    [execution]      provider, minimum_onnxruntime
    [weights]        bits, group_size, symmetric, embedding_bits, lm_head_bits
    [precision]      activations, kv_cache
    [memory]         context, budget_mb, phones_gb; the last may be absent
    [gates]          max_kl, min_top1, max_size_mb; the table and each key may be absent
"""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

from qtool_targets.errors import TargetError

PROVIDERS = ("cpu", "cuda", "directml", "webgpu")
WEIGHT_BITS = (4, 8, 16, 32)
GROUP_SIZES = (16, 32, 64, 128)
FLOAT_TYPES = ("float32", "float16")
KV_CACHE_TYPES = (*FLOAT_TYPES, "int8")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_VERSION = re.compile(r"\d+\.\d+(\.\d+)?")


@dataclass(frozen=True)
class Execution:
    """Where the artifact runs."""

    provider: str
    """Execution provider of ONNX Runtime, one of `PROVIDERS`."""
    minimum_onnxruntime: str
    """Lowest ONNX Runtime version that has every kernel the graph needs, such as "1.23"."""


@dataclass(frozen=True)
class Weights:
    """How weight matrices are stored."""

    bits: int
    """4 or 8: integers in groups with a scale each. 16 or 32: plain floats."""
    group_size: int = 32
    """Weights along the input dimension that share one scale. Ignored for 16 and 32 bits."""
    symmetric: bool = False
    """True: the zero point is the middle of the range and not stored. False: one zero point a group."""
    embedding_bits: int | None = None
    """Bits of the token embedding; the same as `bits` when absent."""
    lm_head_bits: int | None = None
    """Bits of the output projection; the same as `bits` when absent."""


@dataclass(frozen=True)
class Precision:
    """Floating-point types of everything that is not a weight matrix."""

    activations: str
    """One of `FLOAT_TYPES`; also the type of scales, norms and logits."""
    kv_cache: str
    """One of `KV_CACHE_TYPES`, the type of cached keys and values: the activations', or int8 with a scale for
    each channel, which the build measures."""


@dataclass(frozen=True)
class Memory:
    """What the device gives to the model."""

    context: int
    """Default context length in tokens (prompt and answer together)."""
    budget_mb: int
    """Memory the whole process may take on the device at the default context, in units of 10^6 bytes."""
    phones_gb: tuple[int, ...] = ()
    """Memory of phones to plan for, in GB as they are sold; plans say what context fits each."""


@dataclass(frozen=True)
class Gates:
    """What an artifact must reach, or its build fails. None asks for nothing."""

    max_kl: float | None = None
    """Largest mean KL divergence to the source, in nats."""
    min_top1: float | None = None
    """Smallest share of the positions where artifact and source find the same token the most probable."""
    max_size_mb: float | None = None
    """Largest size of the artifact, in units of 10^6 bytes."""

    @property
    def ask_for_quality(self) -> bool:
        """Whether the artifact has to be compared with its source."""
        return self.max_kl is not None or self.min_top1 is not None


@dataclass(frozen=True)
class Target:
    """One hardware profile."""

    name: str
    description: str
    execution: Execution
    weights: Weights
    precision: Precision
    memory: Memory
    gates: Gates = Gates()
    tested_on: tuple[str, ...] = ()
    """What has really executed an artifact of this profile on its provider, each as "SOFTWARE VERSION, SYSTEM
    (DETAILS)"; empty when nothing has."""
    checked: tuple[str, ...] = ()
    """What else is known of its artifacts, where their provider could not execute them."""
    legacy: bool = False
    """True when the provider is no longer developed upstream."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the profile as plain data, as it is frozen into an artifact's manifest."""
        memory = asdict(self.memory) | {"phones_gb": list(self.memory.phones_gb)}
        lists = {"tested_on": list(self.tested_on), "checked": list(self.checked)}
        return asdict(self) | {"memory": memory} | lists


def with_kv_cache(target: Target, dtype: str) -> Target:
    """Returns a profile with another type of cached keys and values.

    Args:
        target: the profile to change.
        dtype: one of `KV_CACHE_TYPES`.

    Raises:
        TargetError: the type is unknown, or does not go with the target's activations.
    """
    changed = replace(target, precision=replace(target.precision, kv_cache=dtype))
    _check(changed, f"target {target.name}")
    return changed


def with_gates(target: Target, gates: Gates) -> Target:
    """Returns a profile with other gates; what `gates` does not ask for stays as it is in the profile.

    Args:
        target: the profile to change.
        gates: what to ask for.

    Raises:
        TargetError: a number is out of its range.
    """
    asked = {key: value for key, value in asdict(gates).items() if value is not None}
    changed = replace(target, gates=replace(target.gates, **asked))
    _check(changed, f"target {target.name}")
    return changed


def parse(data: dict[str, Any], origin: str) -> Target:
    """Reads a profile from parsed TOML.

    Args:
        data: the document.
        origin: what to call it in errors, usually its path.

    Raises:
        TargetError: a key is unknown, missing or of the wrong type, or a value is not valid.
    """
    sections = {"execution": Execution, "weights": Weights, "precision": Precision, "memory": Memory}
    values: dict[str, Any] = {}
    for key, record in sections.items():
        if not isinstance(data.get(key), dict):
            raise TargetError(f"{origin}: the table [{key}] is missing", hint=_hint(origin))
        values[key] = _record(record, data[key], f"{origin}: [{key}]")
    if not isinstance(gates := data.get("gates", {}), dict):
        raise TargetError(f"{origin}: gates = {gates!r} is not a table", hint=_hint(origin))
    values["gates"] = _record(Gates, gates, f"{origin}: [gates]")
    rest = {key: value for key, value in data.items() if key not in values}
    target = _record(Target, rest | values, origin)
    assert isinstance(target, Target)
    _check(target, origin)
    return target


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "int | None": (int,),
    "float | None": (int, float),
    "tuple[str, ...]": (list,),
    "tuple[int, ...]": (list,),
}
_ITEM_TYPES: dict[str, tuple[type, str]] = {
    "tuple[str, ...]": (str, "strings"),
    "tuple[int, ...]": (int, "whole numbers"),
}


def _record(record: type, data: dict[str, Any], origin: str) -> Any:
    """Fills one frozen record, refusing what it does not know."""
    known = {field.name: field for field in fields(record)}
    for key in data:
        if key not in known:
            raise TargetError(f"{origin}: unknown key {key!r}; known: {', '.join(known)}", hint=_hint(origin))
    values = dict(data)
    for name, field in known.items():
        if name not in data:
            if field.default is MISSING:
                raise TargetError(f"{origin}: the key {name!r} is missing", hint=_hint(origin))
            continue
        kinds = _TYPES.get(str(field.type))
        value = data[name]
        if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise TargetError(
                f"{origin}: {name} = {value!r} is not of the type {field.type}", hint=_hint(origin)
            )
        if isinstance(value, list):
            kind, plural = _ITEM_TYPES[str(field.type)]
            if not all(type(item) is kind for item in value):
                raise TargetError(f"{origin}: {name} must be a list of {plural}, got {value!r}")
            values[name] = tuple(value)
    return record(**values)


def _check(target: Target, origin: str) -> None:
    """Checks values against their valid sets and against each other."""

    def one_of(key: str, value: object, valid: tuple[object, ...]) -> None:
        if value not in valid:
            listed = ", ".join(str(item) for item in valid if item is not None)
            raise TargetError(f"{origin}: {key} = {value!r} is not one of {listed}", hint=_hint(origin))

    one_of("execution.provider", target.execution.provider, PROVIDERS)
    one_of("weights.bits", target.weights.bits, WEIGHT_BITS)
    one_of("weights.embedding_bits", target.weights.embedding_bits, (None, *WEIGHT_BITS))
    one_of("weights.lm_head_bits", target.weights.lm_head_bits, (None, *WEIGHT_BITS))
    one_of("weights.group_size", target.weights.group_size, GROUP_SIZES)
    one_of("precision.activations", target.precision.activations, FLOAT_TYPES)
    one_of("precision.kv_cache", target.precision.kv_cache, KV_CACHE_TYPES)
    if not _NAME.fullmatch(target.name):
        raise TargetError(
            f"{origin}: name = {target.name!r} must be lower-case letters, digits, '.', '_' or '-'"
        )
    if not _VERSION.fullmatch(target.execution.minimum_onnxruntime):
        raise TargetError(
            f"{origin}: execution.minimum_onnxruntime = {target.execution.minimum_onnxruntime!r} is not a"
            " version such as '1.23'",
            hint=_hint(origin),
        )
    for key, value in (("context", target.memory.context), ("budget_mb", target.memory.budget_mb)):
        if value <= 0:
            raise TargetError(f"{origin}: memory.{key} = {value} must be positive")
    for size in target.memory.phones_gb:
        if not 1 <= size <= 64:
            raise TargetError(f"{origin}: memory.phones_gb has {size}; valid: 1 to 64", hint=_hint(origin))
    _check_gates(target.gates, origin)
    if target.precision.kv_cache not in (target.precision.activations, "int8"):
        raise TargetError(
            f"{origin}: precision.kv_cache = {target.precision.kv_cache!r} differs from activations ="
            f" {target.precision.activations!r}; no provider's attention kernel accepts that",
            hint="Set both to the same type, or the cache to int8.",
        )
    float_bits = 16 if target.precision.activations == "float16" else 32
    for key in ("bits", "embedding_bits", "lm_head_bits"):
        bits = getattr(target.weights, key)
        if bits in (16, 32) and bits != float_bits:
            raise TargetError(
                f"{origin}: weights.{key} = {bits} does not go with activations ="
                f" {target.precision.activations!r}; plain weights have the activations' type"
                f" ({float_bits} bits)",
                hint=_hint(origin),
            )


def _check_gates(gates: Gates, origin: str) -> None:
    for key, most in (("max_kl", math.inf), ("min_top1", 1.0), ("max_size_mb", math.inf)):
        value = getattr(gates, key)
        if value is not None and not (0 < value <= most and math.isfinite(value)):
            valid = "above 0" if most == math.inf else f"above 0 and at most {most:g}"
            raise TargetError(
                f"{origin}: gates.{key} = {value:g} is not valid; it must be {valid}", hint=_hint(origin)
            )


def _hint(origin: str) -> str:
    file = origin.rpartition(": [")[0] or origin
    return f"Correct {file}; `qtool targets NAME --json` prints a profile that is valid."
