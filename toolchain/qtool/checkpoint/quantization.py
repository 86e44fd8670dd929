"""How the weights of a checkpoint are quantized already: `quantization_config` in its config.json.

Fields and their defaults are those of transformers' `GPTQConfig` and `AwqConfig`, and of Olive's
`OliveHfQuantizationConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn

from qtool.checkpoint.files import shown
from qtool.checkpoint.packed_formats import AwqFormat, GptqFormat, OliveFormat, PackedFormat
from qtool.errors import SourceError, UnsupportedModelError
from qtool.quantize.schemes import Role, Scheme, role_of
from qtool_targets.schema import GROUP_SIZES

Json = Mapping[str, object]

TAKEN_OVER = "source:"
"""Before the name of an algorithm: the integers are the source's own."""

_BITS = (4, 8)
_ANOTHER = "give the original model (bfloat16, float16 or float32), or a GGUF file"


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint says about its quantized matrices."""

    method: str
    """"gptq", "awq" or "olive"."""
    format: PackedFormat
    scheme: Scheme
    """Of the matrices that have no other."""
    roles: frozenset[Role] = frozenset({Role.ATTENTION, Role.MLP})
    """Kinds of matrices that are quantized."""
    only: tuple[str, ...] = ()
    """Ends of the names of the modules that are quantized within a layer; none: all."""
    excluded: tuple[str, ...] = ()
    """Parts of the names of modules that are not."""
    own: Mapping[str, Scheme] = field(default_factory=dict)
    """Modules with a scheme of their own."""
    made_by: tuple[str, ...] = ()
    """Packages that quantized them in this build; none where the source has them so."""

    def scheme_of(self, tensor: str) -> Scheme | None:
        """Returns the scheme of a matrix, by the Hugging Face name that it would have otherwise.

        Such as "model.layers.0.mlp.up_proj.weight". None where it is not quantized.
        """
        role, module = role_of(tensor), tensor.removesuffix(".weight")
        if role not in self.roles or any(part in module for part in self.excluded):
            return None
        in_layer = role in (Role.ATTENTION, Role.MLP)
        if in_layer and self.only and not module.endswith(tuple(f".{name}" for name in self.only)):
            return None
        return self.own.get(module, self.scheme)

    def with_zero_points(self) -> Quantization:
        """Returns the same, with the zero points of symmetric matrices written out."""
        own = {module: replace(scheme, symmetric=False) for module, scheme in self.own.items()}
        return replace(self, scheme=replace(self.scheme, symmetric=False), own=own)


def read_quantization(document: Json) -> Quantization | None:
    """Reads what config.json says about quantization; None where the weights are plain floats.

    Args:
        document: content of config.json.

    Raises:
        UnsupportedModelError: the weights are quantized in a way that cannot be taken over.
        SourceError: a field is missing or of the wrong type.
    """
    fields = document.get("quantization_config")
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise _wrong("", fields, "an object")
    method = fields.get("quant_method")
    readers = {"gptq": _gptq, "awq": _awq, "olive": _olive}
    if not isinstance(method, str) or method not in readers:
        _refuse("quant_method", method, ", ".join(readers))
    return readers[method](fields)


def _gptq(fields: Json) -> Quantization:
    """Reads the configuration that AutoGPTQ, GPTQModel and Optimum write."""
    layout = _word(fields, ("checkpoint_format", "format"), "gptq")
    if fields.get("is_marlin_format"):
        layout = "marlin"
    if layout not in ("gptq", "gptq_v2"):
        _refuse("checkpoint_format", layout, "gptq, gptq_v2")
    if fields.get("dynamic"):
        _refuse("dynamic", fields["dynamic"], "the same settings for all modules")
    if fields.get("pack_dtype") not in (None, "int32"):
        _refuse("pack_dtype", fields["pack_dtype"], "int32")
    return Quantization(
        "gptq",
        GptqFormat(zero_point_offset=1 if layout == "gptq" else 0),
        _scheme(fields, "gptq", symmetric=_flag(fields, "sym", default=True)),
        _roles(fields, lm_head=Role.LM_HEAD),
        only=_names(fields, "modules_in_block_to_quantize"),
    )


def _awq(fields: Json) -> Quantization:
    """Reads the configuration that AutoAWQ writes."""
    layout = _word(fields, ("version", "checkpoint_format", "format"), "gemm")
    if layout != "gemm":
        _refuse("version", layout, "gemm")
    if not _flag(fields, "zero_point", default=True):
        _refuse("zero_point", False, "true")
    named = {"bits": fields.get("w_bit"), "group_size": fields.get("q_group_size")} | dict(fields)
    scheme = _scheme(named, "awq", symmetric=False)
    if scheme.bits != 4:
        _refuse("bits", scheme.bits, "4 for awq")
    return Quantization("awq", AwqFormat(), scheme, excluded=_names(fields, "modules_to_not_convert"))


def _olive(fields: Json) -> Quantization:
    """Reads the configuration that Olive writes; modules may have settings of their own."""
    if _flag(fields, "tie_word_embeddings", default=False):
        _refuse("tie_word_embeddings", True, "false: an embedding and an LM head of their own")
    overrides = fields.get("overrides") or {}
    if not isinstance(overrides, dict) or not all(isinstance(item, dict) for item in overrides.values()):
        raise _wrong("overrides", overrides, "an object of objects")
    own = {
        module: _olive_scheme(dict(fields) | {key: value for key, value in item.items() if value is not None})
        for module, item in overrides.items()
    }
    return Quantization(
        "olive",
        OliveFormat(),
        _olive_scheme(fields),
        _roles(fields, lm_head=Role.LM_HEAD, embeds=Role.EMBEDDING),
        excluded=_names(fields, "modules_to_not_convert"),
        own=own,
    )


def _olive_scheme(fields: Json) -> Scheme:
    return _scheme(fields, "olive", symmetric=_flag(fields, "symmetric", default=None))


def _roles(fields: Json, **others: Role) -> frozenset[Role]:
    """Returns the kinds of matrices that are quantized: those in layers, and what the fields add."""
    added = {role for name, role in others.items() if _flag(fields, name, default=False)}
    return frozenset({Role.ATTENTION, Role.MLP} | added)


def _scheme(fields: Json, method: str, *, symmetric: bool) -> Scheme:
    """Returns the scheme that settings describe, if ONNX Runtime's operators can have it."""
    bits, group_size = fields.get("bits"), fields.get("group_size")
    for name, value, valid in (("bits", bits, _BITS), ("group_size", group_size, GROUP_SIZES)):
        if type(value) is not int:
            raise _wrong(name, value, "a whole number")
        if value not in valid:
            _refuse(name, value, ", ".join(map(str, valid)))
    assert isinstance(bits, int) and isinstance(group_size, int)
    return Scheme(bits, group_size, symmetric, TAKEN_OVER + method)


def _word(fields: Json, names: tuple[str, ...], default: str) -> str:
    """Returns the first of several fields that is there, in lower case."""
    for name in names:
        value = fields.get(name)
        if value is not None:
            if not isinstance(value, str):
                raise _wrong(name, value, "a string")
            return value.lower()
    return default


def _flag(fields: Json, name: str, *, default: bool | None) -> bool:
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _names(fields: Json, name: str) -> tuple[str, ...]:
    """Returns names from a list of them, or of lists of them."""
    value = fields.get(name)
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    flat = [inner for item in items for inner in (item if isinstance(item, list) else [item])]
    names = tuple(item for item in flat if isinstance(item, str))
    if len(names) != len(flat):
        raise _wrong(name, value, "a list of names")
    return names


def _wrong(field: str, value: object, valid: str) -> SourceError:
    where = f"quantization_config.{field}".rstrip(".")
    found = "is missing" if value is None else f"is {shown(value)}"
    return SourceError(
        f"{where} {found} in the model's configuration; it must be {valid}",
        hint="compare config.json with the one the model was published with",
    )


def _refuse(field: str, value: object, valid: str) -> NoReturn:
    raise UnsupportedModelError(
        f"quantization_config.{field} is {shown(value)}: the weights are quantized already, in a way that"
        f" cannot be taken over; supported: {valid}",
        hint=_ANOTHER,
    )
