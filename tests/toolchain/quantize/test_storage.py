"""Weights on their way to the data file: described without reading, computed by rows, refused if unusable."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qtool.checkpoint.weight import Weight
from qtool.errors import SourceError, UnsupportedModelError
from qtool.quantize import rtn
from qtool.quantize.packing import unpack
from qtool.quantize.schemes import Scheme
from qtool.quantize.storage import IntegerStorage
from qtool.storage import ArrayStorage, FloatStorage, Storage, StoredTensor

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


def weight(values: np.ndarray, name: str = "model.layers.0.mlp.up_proj.weight") -> Weight:
    return Weight(name, values.shape, "F32", lambda start, stop: values[start:stop].astype(np.float32))


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((23, 96)).astype(np.float32)


def storages(values: np.ndarray) -> list[Storage]:
    integers = [
        IntegerStorage(weight(values), Scheme(bits, 32, symmetric), dtype)
        for bits, symmetric, dtype in itertools.product((4, 8), (True, False), (FLOAT, FLOAT16))
    ]
    floats = [FloatStorage(weight(values), dtype) for dtype in (FLOAT, FLOAT16)]
    return [*integers, *floats, ArrayStorage("table", values)]


def test_parts_describe_what_is_computed(values: np.ndarray) -> None:
    for storage in storages(values):
        for part, array in zip(storage.parts, storage.compute(0, 23), strict=True):
            assert (part.shape, part.dtype.numpy()) == (array.shape, array.dtype)
            assert part.nbytes == array.nbytes
            assert part.row_bytes * 23 == array.nbytes


def test_chunks_of_rows_are_the_rows_of_the_whole(values: np.ndarray) -> None:
    for storage in storages(values):
        whole = storage.compute(0, 23)
        pieces = [storage.compute(start, min(start + 5, 23)) for start in range(0, 23, 5)]
        for index, array in enumerate(whole):
            np.testing.assert_array_equal(np.concatenate([piece[index] for piece in pieces]), array)


def test_keys_tell_contents_apart(values: np.ndarray) -> None:
    keys = [storage.key for storage in storages(values)]
    assert len(set(keys)) == len(keys)
    assert keys == [storage.key for storage in storages(values * 2)]  # named, not read
    assert FloatStorage(weight(values, "another"), FLOAT).key not in keys


def test_integers_are_those_of_the_algorithm_packed(values: np.ndarray) -> None:
    scheme = Scheme(4, 32)
    packed, scale, zero_point = IntegerStorage(weight(values), scheme, FLOAT16).compute(0, 23)
    expected = rtn.quantize(values, scheme, np.float16)
    np.testing.assert_array_equal(unpack(packed, 4, 96), expected.q.reshape(23, 96))
    np.testing.assert_array_equal(scale, expected.scale)
    np.testing.assert_array_equal(unpack(zero_point, 4, 3), expected.zero_point)


def test_nothing_is_read_before_rows_are_asked_for(values: np.ndarray) -> None:
    reads: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> Any:
        reads.append((start, stop))
        return values[start:stop]

    lazy = Weight("model.norm.weight", values.shape, "F32", read)
    for storage in (FloatStorage(lazy, FLOAT), IntegerStorage(lazy, Scheme(4, 32), FLOAT)):
        tensor = StoredTensor("w", storage)
        assert (tensor.shape.numpy(), storage.key) and not reads
        tensor.numpy()
        assert reads == [(0, 23)]
        reads.clear()


def test_a_stored_tensor_is_one_part_in_a_shape_of_its_own(values: np.ndarray) -> None:
    storage = IntegerStorage(weight(values), Scheme(4, 32), FLOAT)
    blocks = StoredTensor("q", storage, 0, (23, 3, 16))
    np.testing.assert_array_equal(blocks.numpy().reshape(23, 48), storage.compute(0, 23)[0])
    assert StoredTensor("s", storage, 1).numpy().shape == (23, 3)
    with pytest.raises(ValueError, match="has not the size"):
        StoredTensor("q", storage, 0, (23, 3, 17))


@pytest.mark.parametrize("big", [65520.0, -65520.0, 1e6, 3e38])
def test_values_beyond_float16_are_refused_where_the_device_computes_in_it(
    values: np.ndarray, big: float
) -> None:
    values[11, 50] = big
    for storage in storages(values):
        if isinstance(storage, ArrayStorage):
            continue
        if FLOAT16 in (part.dtype for part in storage.parts):
            with pytest.raises(SourceError, match="beyond float16's range") as caught:
                storage.compute(0, 23)
            assert "float32 activations" in caught.value.hint
        else:
            assert all(np.isfinite(array).all() for array in storage.compute(0, 23))


def test_the_largest_float16_is_taken(values: np.ndarray) -> None:
    values[0, 0], values[1, 0] = 65504, -65504
    (stored,) = FloatStorage(weight(values), FLOAT16).compute(0, 23)
    assert (stored[0, 0], stored[1, 0]) == (65504, -65504)


@pytest.mark.parametrize("size", [64, 128])
def test_a_group_size_that_does_not_divide_is_refused_by_name(values: np.ndarray, size: int) -> None:
    with pytest.raises(
        UnsupportedModelError, match=rf"up_proj\.weight has 96 input .* size {size}"
    ) as caught:
        IntegerStorage(weight(values), Scheme(4, size), FLOAT)
    assert "16, 32, 64 or 128" in caught.value.hint
