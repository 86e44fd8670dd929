"""GPTQ: less error in the output than rounding to nearest, and the same where nothing can be gained."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtool.quantize import gptq, rtn
from qtool.quantize.schemes import Scheme

schemes = st.builds(
    Scheme,
    bits=st.sampled_from([2, 4, 8]),
    group_size=st.sampled_from([16, 32, 64, 128]),
    symmetric=st.booleans(),
)
seeds = st.integers(0, 2**32 - 1)


def correlated(random: np.random.Generator, tokens: int, features: int) -> np.ndarray:
    """Inputs that mostly lie in a subspace, as activations do."""
    mixing = random.standard_normal((features // 4, features))
    values = random.standard_normal((tokens, features // 4)) @ mixing
    return (values + 0.1 * random.standard_normal((tokens, features))).astype(np.float32)


def output_error(x: np.ndarray, weights: np.ndarray, quantized: rtn.Quantized, scheme: Scheme) -> float:
    difference = rtn.dequantize(quantized, scheme).astype(np.float64) - weights
    return float(np.square(x @ difference.T).sum())


@settings(max_examples=60, deadline=None)
@given(schemes, seeds, st.integers(40, 50), st.integers(1, 3))
def test_the_output_is_closer_than_with_rounding_to_nearest(
    scheme: Scheme, seed: int, rows: int, groups: int
) -> None:
    """Over many rows: a single one may be lucky with rounding."""
    random = np.random.default_rng(seed)
    columns = groups * scheme.group_size
    x = correlated(random, 4 * columns, columns)
    weights = random.standard_normal((rows, columns)).astype(np.float32)
    calibrated = gptq.quantize(weights, gptq.inverse_factor(x.T @ x), scheme)
    rounded = rtn.quantize(weights, scheme)
    assert output_error(x, weights, calibrated, scheme) < 0.9 * output_error(x, weights, rounded, scheme)


@settings(max_examples=60, deadline=None)
@given(schemes, seeds, st.integers(1, 9), st.integers(1, 3), st.sampled_from([np.float32, np.float16]))
def test_independent_inputs_give_rounding_to_nearest(
    scheme: Scheme, seed: int, rows: int, groups: int, scale_type: type
) -> None:
    random = np.random.default_rng(seed)
    columns = groups * scheme.group_size
    weights = random.standard_normal((rows, columns)).astype(np.float32)
    hessian = np.diag(random.uniform(0, 9, columns)).astype(np.float32)
    found = gptq.quantize(weights, gptq.inverse_factor(hessian), scheme, scale_type)
    expected = rtn.quantize(weights, scheme, scale_type)
    np.testing.assert_array_equal(found.q, expected.q)
    np.testing.assert_array_equal(found.scale, expected.scale)
    assert found.scale.dtype == scale_type
    if scheme.symmetric:
        assert found.zero_point is None
    else:
        np.testing.assert_array_equal(found.zero_point, expected.zero_point)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_representable_stays_as_it_is(bits: int, symmetric: bool) -> None:
    random = np.random.default_rng(bits)
    scheme = Scheme(bits, 32, symmetric)
    whole = random.integers(0, scheme.maximum + 1, (5, 96))
    whole[:, ::32], whole[:, 1::32] = 0, scheme.maximum  # every group has the whole range
    weights = (whole - scheme.middle).astype(np.float32) / 4
    x = correlated(random, 500, 96)
    quantized = gptq.quantize(weights, gptq.inverse_factor(x.T @ x), scheme)
    np.testing.assert_array_equal(rtn.dequantize(quantized, scheme), weights)


def test_columns_that_are_always_0_disturb_nothing() -> None:
    random = np.random.default_rng(0)
    scheme = Scheme(4, 32)
    x = correlated(random, 400, 128)
    x[:, [0, 31, 32, 100]] = 0
    weights = random.standard_normal((7, 128)).astype(np.float32)
    quantized = gptq.quantize(weights, gptq.inverse_factor(x.T @ x), scheme)
    values = rtn.dequantize(quantized, scheme)
    assert np.abs(values - weights).max() < 1.5  # they are kept near what they were, too
    assert output_error(x, weights, quantized, scheme) < output_error(
        x, weights, rtn.quantize(weights, scheme), scheme
    )


def test_inputs_that_are_all_0_give_rounding_to_nearest() -> None:
    scheme = Scheme(4, 32)
    weights = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    found = gptq.quantize(weights, gptq.inverse_factor(np.zeros((64, 64), np.float32)), scheme)
    np.testing.assert_array_equal(found.q, rtn.quantize(weights, scheme).q)


@pytest.mark.parametrize("features", [1, 2, 16, 127, 128, 129, 300, 896])
def test_the_factor_is_of_the_damped_inverse(features: int) -> None:
    random = np.random.default_rng(features)
    x = random.standard_normal((2 * features, features)).astype(np.float32)
    hessian = x.T @ x
    factor = gptq.inverse_factor(hessian).astype(np.float64)
    np.testing.assert_array_equal(factor, np.triu(factor))
    damped = hessian + gptq.DAMPING * np.diagonal(hessian).mean() * np.eye(features)
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(features), atol=2e-3)


def test_enormous_features_beside_small_ones_are_damped_more() -> None:
    """Single features of real models are thousands of times as large as the others."""
    random = np.random.default_rng(0)
    x = random.standard_normal((50, 200)).astype(np.float32)
    x[:, 7] = 1e7 + x[:, 8]
    factor = gptq.inverse_factor(x.T @ x)
    assert np.isfinite(factor).all()
    weights = random.standard_normal((4, 200)).astype(np.float32)
    quantized = gptq.quantize(weights, factor, Scheme(4, 20))
    assert np.isfinite(rtn.dequantize(quantized, Scheme(4, 20))).all()
