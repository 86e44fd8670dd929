"""Which tensor is stored how."""

from __future__ import annotations

from dataclasses import replace

import pytest

import qtool_targets
from qtool.checkpoint.config_json import config_from_json
from qtool.checkpoint.layout import weight_shapes
from qtool.quantize.schemes import Role, Scheme, role_of, scheme_for
from support.tiny import tiny_config


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_every_matrix_of_a_model_has_a_role_and_nothing_else_has(architecture: str) -> None:
    shapes = weight_shapes(config_from_json(tiny_config(architecture, tied=False)))
    assert {name for name, shape in shapes.items() if role_of(name) is not None} == {
        name for name, shape in shapes.items() if len(shape) == 2
    }


@pytest.mark.parametrize(
    ("tensor", "role"),
    [
        ("model.embed_tokens.weight", Role.EMBEDDING),
        ("lm_head.weight", Role.LM_HEAD),
        ("model.layers.11.self_attn.o_proj.weight", Role.ATTENTION),
        ("model.layers.0.mlp.down_proj.weight", Role.MLP),
        ("model.layers.0.self_attn.q_proj.bias", None),
        ("model.layers.0.self_attn.q_norm.weight", None),
        ("model.norm.weight", None),
    ],
)
def test_role_of(tensor: str, role: Role | None) -> None:
    assert role_of(tensor) is role


def test_embedding_and_head_bits_replace_the_common_ones() -> None:
    target = qtool_targets.load("x64-int4")
    target = replace(target, weights=replace(target.weights, embedding_bits=8, lm_head_bits=32))
    assert {role: scheme_for(target, role).bits for role in Role} == {
        Role.ATTENTION: 4,
        Role.MLP: 4,
        Role.EMBEDDING: 8,
        Role.LM_HEAD: 32,
    }


@pytest.mark.parametrize(
    ("scheme", "columns", "expected"),
    [
        (Scheme(32), 96, 10 * 96 * 4),
        (Scheme(16), 96, 10 * 96 * 2),
        (Scheme(8, 32, symmetric=True), 96, 10 * (96 + 3 * 4)),
        (Scheme(8, 32), 96, 10 * (96 + 3 * 4 + 3)),
        (Scheme(4, 32), 96, 10 * (48 + 3 * 4 + 2)),  # three zero points take two bytes
        (Scheme(4, 32, symmetric=True), 96, 10 * (48 + 3 * 4)),
    ],
)
def test_size_of_a_stored_matrix(scheme: Scheme, columns: int, expected: int) -> None:
    assert scheme.nbytes(10, columns, scale_bytes=4) == expected
