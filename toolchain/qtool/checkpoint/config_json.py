"""The typed configuration, from config.json and generation_config.json of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.files import shown
from qtool.checkpoint.supported import check_model_type, unsupported
from qtool.errors import SourceError

Json = Mapping[str, object]

FLOAT_TYPES = ("bfloat16", "float16", "float32", "auto")


def config_from_json(config: Json, generation: Json | None = None) -> QwenConfig:
    """Reads the configuration.

    A field whose value is not implemented is refused; a field that only matters for training, or that this
    architecture ignores, is not looked at. Defaults are those of transformers, for fields it leaves out.

    Args:
        config: content of config.json.
        generation: content of generation_config.json; its token ids come before those of config.json.

    Raises:
        UnsupportedModelError: a value is understood but not implemented.
        SourceError: a field is missing, of the wrong type, or out of range.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise _wrong("model_type", model_type, "a string such as qwen2")
    check_model_type(model_type, "model_type")
    _refuse_variants(config, model_type)
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    key_value_heads = _size(config, "num_key_value_heads")
    if heads % key_value_heads:
        raise _contradiction(
            f"num_attention_heads is {heads}, not a multiple of num_key_value_heads, {key_value_heads}"
        )
    if config.get("head_dim") is None and hidden % heads:
        raise _contradiction(
            f"hidden_size is {hidden}, which is not a multiple of num_attention_heads, {heads}, "
            "and there is no head_dim"
        )
    head_dim = hidden // heads if config.get("head_dim") is None else _size(config, "head_dim")
    if head_dim % 2:
        raise _contradiction(f"head_dim is {head_dim}; rotary positions need an even number")
    vocabulary = _size(config, "vocab_size")
    sources = [generation or {}, config]
    return QwenConfig(
        model_type=model_type,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=_size(config, "intermediate_size"),
        num_hidden_layers=_size(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        rms_norm_eps=_number(config, "rms_norm_eps"),
        rope_theta=_rope_theta(config),
        max_position_embeddings=_size(config, "max_position_embeddings"),
        tie_word_embeddings=_flag(config, "tie_word_embeddings", default=False),
        attention_bias=model_type == "qwen2",
        bos_token_id=_token(sources, "bos_token_id", vocabulary),
        eos_token_ids=_end_tokens(sources, vocabulary),
        pad_token_id=_token(sources, "pad_token_id", vocabulary),
    )


def _refuse_variants(config: Json, model_type: str) -> None:
    """Refuses values that would need other arithmetic than what is implemented."""
    family = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[model_type]
    architectures = config.get("architectures")
    if architectures is not None and architectures != [family]:
        unsupported("architectures", architectures, f'["{family}"]', "another head than a language model's")
    dtype_field = "dtype" if config.get("dtype") is not None else "torch_dtype"
    dtype = config.get(dtype_field)
    if dtype is not None and dtype not in FLOAT_TYPES:
        unsupported(dtype_field, dtype, ", ".join(FLOAT_TYPES))
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        unsupported("hidden_act", activation, '"silu"')
    for field in ("use_sliding_window", "use_mrope"):
        if _flag(config, field, default=False):
            unsupported(field, True, "false")
    layer_types = config.get("layer_types")
    if layer_types is not None:
        if not isinstance(layer_types, list):
            raise _wrong("layer_types", layer_types, "a list")
        other = next((kind for kind in layer_types if kind != "full_attention"), None)
        if other is not None:
            unsupported("layer_types", other, '"full_attention" in every layer')
        if len(layer_types) != _size(config, "num_hidden_layers"):
            raise _wrong("layer_types", layer_types, "one entry for each of num_hidden_layers")
    # Qwen2's projections have a bias whatever the configuration says; Qwen3's never do in official models.
    if model_type == "qwen3" and _flag(config, "attention_bias", default=False):
        unsupported("attention_bias", True, "false for qwen3")


def _rope_theta(config: Json) -> float:
    """Returns the base of the rotary frequencies, from either spelling.

    transformers 4: "rope_theta", and "rope_scaling" (null or a dictionary with "type" or "rope_type").
    transformers 5: "rope_parameters" with "rope_theta" and "rope_type".
    """
    for field in ("rope_scaling", "rope_parameters"):
        scaling = config.get(field)
        if scaling is None:
            continue
        if not isinstance(scaling, dict):
            raise _wrong(field, scaling, "null or an object")
        kinds = [scaling[key] for key in ("rope_type", "type") if scaling.get(key) is not None]
        # Other entries, such as "factor" or "mrope_section", belong to kinds that are not implemented.
        unknown = sorted(scaling.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor"})
        if unknown or any(kind != "default" for kind in kinds):
            unsupported(
                field, dict(scaling), 'null or {"rope_type": "default"}', "stretched or other positions"
            )
        if scaling.get("partial_rotary_factor") not in (None, 1, 1.0):
            unsupported(f"{field}.partial_rotary_factor", scaling["partial_rotary_factor"], "1.0")
    if config.get("partial_rotary_factor") not in (None, 1, 1.0):
        unsupported("partial_rotary_factor", config["partial_rotary_factor"], "1.0")
    parameters = config.get("rope_parameters")
    if isinstance(parameters, dict) and parameters.get("rope_theta") is not None:
        theta = _number(parameters, "rope_theta")
        if config.get("rope_theta") is not None and _number(config, "rope_theta") != theta:
            raise _contradiction(f"rope_theta is {config['rope_theta']}, but rope_parameters says {theta}")
        return theta
    return _number(config, "rope_theta")


def _contradiction(message: str) -> SourceError:
    return SourceError(message, hint="compare config.json with the one the model was published with")


def _wrong(field: str, value: object, valid: str) -> SourceError:
    found = "is missing" if value is None else f"is {shown(value)}"
    return _contradiction(f"{field} {found} in the model's configuration; it must be {valid}")


def _size(config: Json, field: str) -> int:
    """Returns a positive whole number (a boolean is not one)."""
    value = config.get(field)
    if type(value) is not int or not 0 < value < 2**31:
        raise _wrong(field, value, "a whole number from 1 to 2147483647")
    return value


def _number(config: Json, field: str) -> float:
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise _wrong(field, value, "a positive number")
    return float(value)


def _flag(config: Json, field: str, *, default: bool) -> bool:
    value = config.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong(field, value, "true or false")
    return value


def _token(sources: list[Json], field: str, vocabulary: int) -> int | None:
    """Returns a token id of the first source that has one."""
    value = next((source[field] for source in sources if source.get(field) is not None), None)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < vocabulary:
        raise _wrong(field, value, f"a token from 0 to {vocabulary - 1}")
    return value


def _end_tokens(sources: list[Json], vocabulary: int) -> tuple[int, ...]:
    """Returns the ids that end a generation: "eos_token_id" is a number or a list of them."""
    value = next(
        (source["eos_token_id"] for source in sources if source.get("eos_token_id") is not None), None
    )
    values = value if isinstance(value, list) else [value]
    if not values or any(type(item) is not int or not 0 <= item < vocabulary for item in values):
        raise _wrong("eos_token_id", value, f"a token from 0 to {vocabulary - 1}, or a list of them")
    return tuple(dict.fromkeys(values))
