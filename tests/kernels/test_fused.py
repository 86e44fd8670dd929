"""FusedMatMulNBits of the kernel pack: the same bits as its steps one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from kernels.nodes import OURS, Weights, session

Floats = np.ndarray[Any, np.dtype[np.float32]]

DEPTH, EPSILON = 150, 1e-6
FORMATS = [(4, 32), (4, 128), (8, 32), (2, 32)]


def numbers(*shape: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matrices(count: int, columns: int = 43, formats: Sequence[tuple[int, int]] = FORMATS) -> list[Weights]:
    return [
        Weights.random(
            columns, DEPTH, *formats[i], zero_points=i != 1, bias=i == 0, seed=i + 1
        )
        for i in range(count)
    ]  # fmt: skip


def fused(
    products: list[Weights],
    *,
    norm: Floats | None = None,
    skip: bool = False,
    gated: bool = False,
    threads: int = 2,
    **more: Any,
) -> Any:
    """A session with the inputs A and skip, and the outputs sum, Y1, Y2, Y3, where there are such."""
    initializers: dict[str, Any] = {} if norm is None else {"norm": norm}
    names = ["A", "skip" if skip else "", "" if norm is None else "norm"]
    attributes: dict[str, Any] = {"K": DEPTH, "epsilon": EPSILON, "gated": int(gated)}
    for i, weights in enumerate(products, 1):
        parts = {"B": weights.values, "scales": weights.scales}
        parts |= {"zero_points": weights.zero_points, "bias": weights.bias}
        names += [f"{name}{i}" if value is not None else "" for name, value in parts.items()]
        initializers |= {f"{name}{i}": value for name, value in parts.items() if value is not None}
        attributes |= {
            f"N{i}": weights.columns,
            f"bits{i}": weights.bits,
            f"block_size{i}": weights.block_size,
        }
    outputs = ["sum" if skip else "", *(f"Y{i + 1}" for i in range(1 if gated else len(products)))]
    node = helper.make_node("FusedMatMulNBits", names, outputs, domain=OURS, **(attributes | more))

    def infos(names: list[str]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name]

    return session(node, infos(names[:2]), infos(outputs), initializers, threads)


def normalized(x: Floats, weight: Floats) -> Floats:
    """RMS normalization, each step rounded and sums taken in the order of the kernels."""
    padded = np.zeros((len(x), -(-x.shape[1] // 16) * 16), np.float32)
    padded[:, : x.shape[1]] = x
    lanes = np.zeros((len(x), 16), np.float32)
    for begin in range(0, padded.shape[1], 16):
        lanes += padded[:, begin : begin + 16] * padded[:, begin : begin + 16]
    four = (lanes[:, :4] + lanes[:, 4:8]) + (lanes[:, 8:12] + lanes[:, 12:])
    total = (four[:, 0] + four[:, 1]) + (four[:, 2] + four[:, 3])
    factor = np.float32(1) / np.sqrt(total / np.float32(x.shape[1]) + np.float32(EPSILON))
    return x * factor[:, None] * weight


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 40, 150])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_normalized_sums_times_weights_of_several_formats(
    instruction_set: str, rows: int, count: int
) -> None:
    x, skip, weight = numbers(rows, DEPTH), numbers(rows, DEPTH, seed=2), numbers(DEPTH, seed=3)
    products = matrices(count)
    total, *outputs = fused(products, norm=weight, skip=True).run(None, {"A": x, "skip": skip})
    np.testing.assert_array_equal(total, x + skip)
    for output, weights in zip(outputs, products, strict=True):
        np.testing.assert_array_equal(output, weights.multiply(normalized(x + skip, weight)))


@pytest.mark.parametrize("rows", [1, 4, 33])
def test_each_part_may_be_left_out(instruction_set: str, rows: int) -> None:
    x, weight, products = numbers(rows, DEPTH), numbers(DEPTH, seed=3), matrices(3)
    for norm, expected in ((None, x), (weight, normalized(x, weight))):
        outputs = fused(products, norm=norm).run(None, {"A": x})
        for output, weights in zip(outputs, products, strict=True):
            np.testing.assert_array_equal(output, weights.multiply(expected))


@pytest.mark.parametrize("rows", [1, 3, 5, 40])
@pytest.mark.parametrize("columns", [5, 16, 43, 900])
def test_the_gate(instruction_set: str, rows: int, columns: int) -> None:
    x, products = numbers(rows, DEPTH), matrices(2, columns)
    (found,) = fused(products, gated=True).run(None, {"A": x})
    gate, up = (weights.multiply(x) for weights in products)
    expected = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-30)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 60),
    cut=st.integers(0, 60),
    formats=st.permutations(FORMATS),
    gated=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_row_does_not_depend_on_others_or_on_threads(
    instruction_set: str, count: int, cut: int, formats: list[tuple[int, int]], gated: bool, seed: int
) -> None:
    x, skip = numbers(count, DEPTH, seed=seed), numbers(count, DEPTH, seed=seed + 1)
    options = {"norm": numbers(DEPTH, seed=3), "skip": True, "gated": gated}
    whole = fused(matrices(2, formats=formats), **options).run(None, {"A": x, "skip": skip})
    alone = fused(matrices(2, formats=formats), threads=1, **options)
    parts = [alone.run(None, {"A": x[part], "skip": skip[part]}) for part in (np.s_[:cut], np.s_[cut:])]
    for output, *pieces in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(output, np.concatenate(pieces))


def test_a_sum_of_each_sequence_with_the_same(instruction_set: str) -> None:
    x, skip, weight = numbers(3, 4, DEPTH), numbers(4, DEPTH, seed=2), numbers(DEPTH, seed=3)
    total, y = fused(matrices(1), norm=weight, skip=True).run(None, {"A": x, "skip": skip})
    np.testing.assert_array_equal(total, x + skip)
    assert y.shape == (3, 4, 43)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gated": True, "count": 3}, "gated is 1; valid with two products of the same N"),
        ({"gated": True, "N2": 42}, "B has type"),
        ({"norm": numbers(DEPTH - 1)}, "norm_weight has type 1 and 149 elements; valid: type 1, 150"),
        ({"bits2": 3}, "bits/block_size is 3/128; valid:"),
        ({"N2": -1}, "K is 150 and N2 -1; valid: 1 to 16777216"),
        ({"count": 1, "N1": 0}, "K is 150 and N1 0"),
    ],
)
def test_what_is_not_computed_is_refused(options: dict[str, Any], message: str) -> None:
    products = matrices(options.pop("count", 2))
    with pytest.raises(Exception, match=message):
        fused(products, **options)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"A": numbers(2, DEPTH + 1)}, "the last size of A must be K"),
        ({"skip": numbers(2, DEPTH + 1)}, "the last size of skip must be K"),
        ({"skip": numbers(3, DEPTH)}, "skip must have the shape of A"),
        ({"skip": numbers(0, DEPTH)}, "skip must have the shape of A"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(feed: dict[str, Any], message: str) -> None:
    inference = fused(matrices(1), norm=numbers(DEPTH), skip=True)
    with pytest.raises(Exception, match=message):
        inference.run(None, {"A": numbers(2, DEPTH), "skip": numbers(2, DEPTH)} | feed)


def test_no_rows() -> None:
    feed = {"A": numbers(0, DEPTH), "skip": numbers(0, DEPTH)}
    total, y = fused(matrices(1), norm=numbers(DEPTH), skip=True).run(None, feed)
    assert (total.shape, y.shape) == ((0, DEPTH), (0, 43))


def test_a_sum_without_normalization_is_refused() -> None:
    with pytest.raises(Exception, match="skip is given; valid with norm_weight"):
        fused(matrices(1), skip=True).run(None, {"A": numbers(1, DEPTH), "skip": numbers(1, DEPTH)})
