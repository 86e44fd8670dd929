"""The table of tensors, and the check of a checkpoint against it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qtool.checkpoint import QwenConfig, Weight
from qtool.checkpoint.config_json import config_from_json
from qtool.checkpoint.layout import check_weights, weight_shapes
from qtool.errors import SourceError, UnsupportedModelError
from support.tiny import random_tensors, tiny_config


def config(architecture: str, *, tied: bool = True) -> QwenConfig:
    return config_from_json(tiny_config(architecture, tied=tied))


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Weight]:
    def weight(name: str, shape: tuple[int, ...]) -> Weight:
        return Weight(
            name, shape, "F32", lambda start, stop: np.zeros((stop - start, *shape[1:]), np.float32)
        )

    return {name: weight(name, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_table_has_the_names_and_shapes_of_real_checkpoints(architecture: str, tied: bool) -> None:
    written = random_tensors(tiny_config(architecture, tied=tied), seed=0)
    shapes = weight_shapes(config(architecture, tied=tied))
    assert shapes == {name: values.shape for name, values in written.items()}
    assert next(iter(shapes)) == "model.embed_tokens.weight"


def test_the_table_counts_the_parameters_of_an_official_model() -> None:
    official = QwenConfig(
        model_type="qwen3",
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=None,
        eos_token_ids=(151645,),
        pad_token_id=None,
    )
    # The model card of Qwen3-0.6B: 0.6B parameters, 0.44B without the embedding.
    total = sum(math.prod(shape) for shape in weight_shapes(official).values())
    assert total == 596_049_920
    assert total - 151936 * 1024 == 440_467_456


def test_missing_tensors_are_named() -> None:
    found = weights(weight_shapes(config("qwen2")))
    del found["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(SourceError, match=r"lacks 1 of .*model\.layers\.1\.mlp\.up_proj\.weight"):
        check_weights(config("qwen2"), found)


def test_an_untied_model_needs_its_head() -> None:
    with pytest.raises(SourceError, match=r"lm_head\.weight"):
        check_weights(config("qwen2", tied=False), weights(weight_shapes(config("qwen2"))))


def test_wrong_shapes_are_named_with_both_shapes() -> None:
    shapes = weight_shapes(config("qwen3"))
    shapes["model.layers.0.self_attn.q_norm.weight"] = (16,)
    with pytest.raises(SourceError, match=r"q_norm\.weight' is \(16,\), not \(32,\)"):
        check_weights(config("qwen3"), weights(shapes))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.2.input_layernorm.weight",
        "base_model.model.layers.0.lora_A.weight",
        "model.layers.0.self_attn.q_norm.weight",
    ],
)
def test_tensors_that_would_be_left_out_are_refused(name: str) -> None:
    shapes = weight_shapes(config("qwen2")) | {name: (64,)}
    with pytest.raises(UnsupportedModelError, match="1 tensors that a qwen2 model") as caught:
        check_weights(config("qwen2"), weights(shapes))
    assert name in caught.value.message


def test_harmless_extras_are_left_out_and_the_order_is_that_of_the_table() -> None:
    shapes = weight_shapes(config("qwen2"))
    found = weights(
        {"lm_head.weight": (320, 64), "model.rotary_emb.inv_freq": (8,)} | dict(reversed(shapes.items()))
    )
    assert list(check_weights(config("qwen2"), found)) == list(shapes)
