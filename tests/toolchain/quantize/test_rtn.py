"""Round to nearest: how far a weight may end up from where it was, and what must stay exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qtool.quantize import rtn
from qtool.quantize.schemes import Scheme

EPSILON = {np.float32: 2.0**-22, np.float16: 2.0**-10}
"""How much a scale may differ from the ideal one: its type's rounding, and that of float32 arithmetic."""
TINY = {np.float32: 2.0**-127, np.float16: 2.0**-24}
"""A scale about this small is coarse, or has no inverse: the group then becomes zeros, or is clipped."""

schemes = st.builds(
    Scheme,
    bits=st.sampled_from([2, 4, 8]),
    group_size=st.sampled_from([16, 32, 64, 128]),
    symmetric=st.booleans(),
)
scale_types = st.sampled_from([np.float32, np.float16])
ALL_SCHEMES = [Scheme(bits, 32, symmetric) for bits in (4, 8) for symmetric in (True, False)]
each_scheme = pytest.mark.parametrize(
    "scheme", ALL_SCHEMES, ids=lambda s: f"int{s.bits}-{'symmetric' if s.symmetric else 'asymmetric'}"
)


@st.composite
def matrices(draw: st.DrawFn, scheme: Scheme) -> np.ndarray:
    """A matrix of a few groups, of an ordinary range: see below for extremes."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 3)) * scheme.group_size)
    magnitude = draw(st.sampled_from([2.0**-10, 1.0, 128.0]))
    elements = st.floats(-magnitude, magnitude, width=32)
    return draw(arrays(np.float32, shape, elements=elements, fill=elements))


def by_group(matrix: np.ndarray, scheme: Scheme) -> np.ndarray:
    return matrix.astype(np.float64).reshape(len(matrix), -1, scheme.group_size)


@settings(max_examples=200)
@given(st.data(), schemes, scale_types)
def test_every_weight_is_within_half_a_step_unless_its_range_ends_before(
    data: st.DataObject, scheme: Scheme, scale_type: type
) -> None:
    weights = data.draw(matrices(scheme))
    quantized = rtn.quantize(weights, scheme, scale_type)
    exact, found = by_group(weights, scheme), by_group(rtn.dequantize(quantized, scheme), scheme)
    step = np.abs(quantized.scale.astype(np.float64))[..., None]

    # What the integers can stand for: a weight beyond the last one is clipped to it.
    zero_point = scheme.middle if quantized.zero_point is None else quantized.zero_point[..., None]
    ends = (np.array([0.0, scheme.maximum]) - zero_point) * quantized.scale.astype(np.float64)[..., None]
    lowest, highest = ends.min(axis=-1, keepdims=True), ends.max(axis=-1, keepdims=True)
    beyond = np.maximum(0, np.maximum(exact - highest, lowest - exact))
    lost = scheme.maximum * TINY[scale_type]
    assert (np.abs(found - exact) <= np.maximum(step * (0.5 + 2.0**-12) + beyond, lost)).all()

    # And that is little: half a step of a range that covers both ends, one step of a symmetric one.
    slack = (1.0 if scheme.symmetric else 0.5) + scheme.maximum * EPSILON[scale_type]
    assert (beyond <= np.maximum(step * slack, lost)).all()


@given(st.data(), schemes, scale_types)
def test_zero_stays_zero(data: st.DataObject, scheme: Scheme, scale_type: type) -> None:
    weights = data.draw(matrices(scheme))
    weights[:, ::3] = 0
    found = rtn.dequantize(rtn.quantize(weights, scheme, scale_type), scheme)
    assert (found[:, ::3] == 0).all()


@given(st.data(), schemes, scale_types)
def test_rows_do_not_depend_on_each_other(data: st.DataObject, scheme: Scheme, scale_type: type) -> None:
    weights = data.draw(matrices(scheme))
    whole = rtn.quantize(weights, scheme, scale_type)
    for row in range(len(weights)):
        alone = rtn.quantize(weights[row : row + 1], scheme, scale_type)
        for one, all_ in zip(alone, whole, strict=True):
            if one is not None and all_ is not None:
                np.testing.assert_array_equal(one[0], all_[row])


@given(st.data(), schemes)
def test_symmetric_quantization_of_what_is_quantized_changes_nothing(
    data: st.DataObject, scheme: Scheme
) -> None:
    """But for the rounding of the scale: the value of largest magnitude is exact."""
    scheme = replace(scheme, symmetric=True)
    once = rtn.dequantize(rtn.quantize(data.draw(matrices(scheme)), scheme), scheme)
    twice = rtn.dequantize(rtn.quantize(once, scheme), scheme)
    largest = np.abs(by_group(once, scheme)).max(axis=-1, keepdims=True)
    assert (np.abs(by_group(twice, scheme) - by_group(once, scheme)) <= largest * 1e-5 + 1e-30).all()


def test_symmetric_keeps_the_value_of_largest_magnitude_and_its_sign() -> None:
    for sign in (1, -1):
        weights = (sign * np.linspace(-0.9, 1.0, 32, dtype=np.float32))[None]
        for bits in (4, 8):
            scheme = Scheme(bits, 32, symmetric=True)
            quantized = rtn.quantize(weights, scheme)
            assert quantized.q[0, 0, -1] == 0  # the end of the range that has one more step
            assert rtn.dequantize(quantized, scheme)[0, -1] == sign


def test_symmetric_clips_only_the_opposite_end() -> None:
    scheme = Scheme(4, 32, symmetric=True)
    weights = np.linspace(-1, 1, 32, dtype=np.float32)[None]  # both ends have the largest magnitude
    found = rtn.dequantize(rtn.quantize(weights, scheme), scheme)
    step = 1 / 8
    error = np.abs(found - weights)[0]
    assert error.max() == error[0] == step or error.max() == error[-1] == step
    assert (np.sort(error)[:-1] <= step * 0.51).all()


@each_scheme
@pytest.mark.parametrize("scale_type", [np.float32, np.float16])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5, 1e-3])
def test_constant_groups_are_exact_up_to_the_scale(scheme: Scheme, scale_type: type, value: float) -> None:
    weights = np.full((2, 64), value, np.float32)
    quantized = rtn.quantize(weights, scheme, scale_type)
    assert quantized.scale.dtype == scale_type
    np.testing.assert_allclose(
        rtn.dequantize(quantized, scheme), weights, rtol=EPSILON[scale_type] * scheme.maximum, atol=0
    )


@each_scheme
def test_a_group_of_zeros_beside_others_is_zeros(scheme: Scheme) -> None:
    weights = np.zeros((1, 96), np.float32)
    weights[0, :32], weights[0, 64:] = 1, -1
    found = rtn.dequantize(rtn.quantize(weights, scheme), scheme)
    assert (found[0, 32:64] == 0).all()
    assert np.isfinite(found).all()


@each_scheme
@pytest.mark.parametrize(
    ("magnitude", "scale_type"),
    [(magnitude, np.float32) for magnitude in (1e-45, 1e-38, 1e-8, 3e-5, 6e4, 1e38)]
    + [(magnitude, np.float16) for magnitude in (1e-45, 1e-38, 1e-8, 3e-5, 6e4)],
)
def test_extreme_magnitudes_stay_finite_and_small_ones_become_nothing(
    scheme: Scheme, scale_type: type, magnitude: float
) -> None:
    random = np.random.default_rng(0)
    weights = (random.uniform(-1, 1, (3, 64)) * magnitude).astype(np.float32)
    found = rtn.dequantize(rtn.quantize(weights, scheme, scale_type), scheme)
    assert np.isfinite(found).all()
    assert np.abs(found - weights).max() <= max(magnitude / 7, scheme.maximum * TINY[scale_type])


@each_scheme
def test_the_full_range_of_float32_does_not_overflow(scheme: Scheme) -> None:
    """The difference of both ends is beyond float32: it must not become an infinite scale."""
    weights = np.linspace(-3e38, 3e38, 32, dtype=np.float32)[None]
    quantized = rtn.quantize(weights, scheme)
    found = rtn.dequantize(quantized, scheme)
    assert np.isfinite(quantized.scale).all()
    assert np.abs(found - weights).max() <= 3e38 / (7 if scheme.symmetric else 14)


def test_integers_are_chosen_for_the_rounded_scale() -> None:
    """Choosing them for the scale before it is rounded to float16 would be worse."""
    random = np.random.default_rng(1)
    scheme = Scheme(8, 128, symmetric=True)
    weights = random.standard_normal((64, 128)).astype(np.float32) * np.float32(1e-4)
    half = rtn.quantize(weights, scheme, np.float16)
    other = rtn.quantize(weights, scheme)._replace(scale=half.scale)
    error = [np.square(rtn.dequantize(q, scheme) - weights).mean() for q in (half, other)]
    assert error[0] < error[1] * 0.9
