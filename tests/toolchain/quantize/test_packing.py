"""Small integers in bytes: packing and unpacking are inverse, and the layout is the operators' own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from qtool.quantize.packing import pack, unpack

BITS = (2, 4, 8)


@st.composite
def integers(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    bits = draw(st.sampled_from(BITS))
    shape = draw(array_shapes(max_dims=3, max_side=9))
    return bits, draw(arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))


@given(integers())
def test_unpack_is_the_inverse_of_pack_for_any_count(case: tuple[int, np.ndarray]) -> None:
    bits, values = case
    packed = pack(values, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (*values.shape[:-1], -(-values.shape[-1] * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, values.shape[-1]), values)


@given(st.sampled_from(BITS), arrays(np.uint8, array_shapes(max_dims=3, max_side=9)))
def test_pack_is_the_inverse_of_unpack_for_any_bytes(bits: int, packed: np.ndarray) -> None:
    count = packed.shape[-1] * 8 // bits
    np.testing.assert_array_equal(pack(unpack(packed, bits, count), bits), packed)


@pytest.mark.parametrize(
    ("bits", "values", "expected"),
    [
        (2, [1, 2, 3, 0, 1], [0b00_11_10_01, 0b01]),
        (4, [0x1, 0xA, 0xF], [0xA1, 0x0F]),
        (8, [0, 128, 255], [0, 128, 255]),
    ],
)
def test_first_integer_is_in_the_lowest_bits_and_the_rest_is_zero(
    bits: int, values: list[int], expected: list[int]
) -> None:
    assert pack(np.array(values, np.uint8), bits).tolist() == expected


@given(integers())
def test_packing_leaves_its_input_alone(case: tuple[int, np.ndarray]) -> None:
    bits, values = case
    before = values.copy()
    pack(values, bits)
    np.testing.assert_array_equal(values, before)
