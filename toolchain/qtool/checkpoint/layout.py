"""Which tensors a dense Qwen decoder is made of: the single table of names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.checkpoint.config import QwenConfig
from qtool.checkpoint.files import shown, some
from qtool.checkpoint.weight import Weight
from qtool.errors import SourceError, UnsupportedModelError

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"


def layer_shapes(config: QwenConfig) -> dict[str, tuple[int, ...]]:
    """Returns the tensors of one layer, by their names after "model.layers.N."."""
    hidden, head = config.hidden_size, config.head_dim
    query, key_value = config.num_attention_heads * head, config.num_key_value_heads * head
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.k_proj.weight": (key_value, hidden),
        "self_attn.v_proj.weight": (key_value, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (config.intermediate_size, hidden),
        "mlp.up_proj.weight": (config.intermediate_size, hidden),
        "mlp.down_proj.weight": (hidden, config.intermediate_size),
    }
    if config.attention_bias:
        shapes["self_attn.q_proj.bias"] = (query,)
        shapes["self_attn.k_proj.bias"] = (key_value,)
        shapes["self_attn.v_proj.bias"] = (key_value,)
    if config.model_type == "qwen3":
        shapes["self_attn.q_norm.weight"] = (head,)
        shapes["self_attn.k_norm.weight"] = (head,)
    return shapes


def weight_shapes(config: QwenConfig) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of every tensor of the model, in the order in which it uses them.

    Linear weights are (out_features, in_features). A tied model has no `lm_head.weight`: its embedding is
    used twice.
    """
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    layer = layer_shapes(config)
    for index in range(config.num_hidden_layers):
        shapes.update({f"model.layers.{index}.{name}": shape for name, shape in layer.items()})
    shapes[FINAL_NORM] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def check_weights(config: QwenConfig, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Returns the tensors that the model needs, in the order of `weight_shapes`.

    A tensor that the architecture does not know is refused, because leaving it out would silently compute
    something else. Two are harmless: the `lm_head.weight` that some tools store for tied models, and rotary
    frequencies, which follow from the configuration.

    Raises:
        SourceError: a tensor is missing or has another shape than the configuration says.
        UnsupportedModelError: there are tensors that the architecture does not use.
    """
    check_layers(config, len(weights))
    needed = weight_shapes(config)
    missing = [shown(name) for name in needed if name not in weights]
    if missing:
        raise SourceError(
            f"the checkpoint lacks {len(missing)} of the model's {len(needed)} tensors: {some(missing)}",
            hint="the download is incomplete, or config.json belongs to another model",
        )
    wrong = [
        f"{shown(name)} is {weights[name].shape}, not {shape}"
        for name, shape in needed.items()
        if weights[name].shape != shape
    ]
    if wrong:
        raise SourceError(
            f"{len(wrong)} tensors do not have the shape that the configuration asks for: {some(wrong)}",
            hint="the configuration and the weights belong to different models",
        )
    unknown = [shown(name) for name in weights if name not in needed and not _harmless(name)]
    if unknown:
        raise UnsupportedModelError(
            f"the checkpoint has {len(unknown)} tensors that a {config.model_type} model of "
            f"{config.num_hidden_layers} layers does not use: {some(unknown)}",
            hint="an adapter must be merged into its base model first; other variants are not supported",
        )
    return {name: weights[name] for name in needed}


def check_layers(config: QwenConfig, tensors: int) -> None:
    """Refuses a hostile number of layers, before a table of them is built.

    Args:
        config: the model's.
        tensors: how many the checkpoint has.
    """
    if config.num_hidden_layers > tensors:
        raise SourceError(
            f"the configuration asks for {config.num_hidden_layers} layers, "
            f"but the checkpoint has only {tensors} tensors",
            hint="the download is incomplete, or config.json belongs to another model",
        )


def _harmless(name: str) -> bool:
    """Whether a tensor that is not needed may be there all the same."""
    return name == LM_HEAD or name.endswith("rotary_emb.inv_freq")
