"""MatMulNBits of the kernel pack: exact where it can be, and a row whatever its neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.nodes import THEIRS, Weights

FORMATS = [(2, 32), (2, 64), (2, 128), (4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128)]


def rows(count: int, depth: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((count, depth)).astype(np.float32)


@pytest.mark.parametrize(("bits", "block_size"), FORMATS)
@pytest.mark.parametrize("zero_points", [False, True])
def test_same_bits_as_numpy(instruction_set: str, bits: int, block_size: int, zero_points: bool) -> None:
    weights = Weights.random(75, 5 * block_size + 7, bits, block_size, zero_points=zero_points, bias=True)
    inference = weights.session()
    for count in (1, 2, 3, 7, 40):
        x = rows(count, weights.depth)
        np.testing.assert_array_equal(inference.run(None, {"A": x})[0], weights.multiply(x))


@pytest.mark.parametrize(("bits", "block_size"), [(4, 32), (4, 128), (8, 32)])
def test_close_to_onnxruntime(instruction_set: str, bits: int, block_size: int) -> None:
    weights = Weights.random(64, 512, bits, block_size, zero_points=True, bias=False)
    x = rows(5, 512)
    ours, theirs = (
        session.run(None, {"A": x})[0] for session in (weights.session(), weights.session(THEIRS))
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())


@given(
    weight_format=st.sampled_from(FORMATS),
    columns=st.integers(1, 70),
    depth=st.integers(1, 700),
    count=st.integers(1, 16) | st.integers(32, 140),  # products one by one, and in tiles
    exponent=st.integers(-140, 120),
    spoiled=st.sampled_from([0, np.nan, np.inf, -np.inf]),
    flags=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_and_scale(
    instruction_set: str,
    weight_format: tuple[int, int],
    columns: int,
    depth: int,
    count: int,
    exponent: int,
    spoiled: float,
    flags: tuple[bool, bool],
    seed: int,
) -> None:
    weights = Weights.random(columns, depth, *weight_format, zero_points=flags[0], bias=flags[1], seed=seed)
    x = np.ldexp(rows(count, depth, seed), exponent).astype(np.float32)
    x[seed % count, seed % depth] = spoiled
    np.testing.assert_array_equal(weights.session().run(None, {"A": x})[0], weights.multiply(x))


@pytest.mark.parametrize(("bits", "block_size"), [(4, 32), (8, 128)])
def test_a_row_does_not_depend_on_rows_or_threads(instruction_set: str, bits: int, block_size: int) -> None:
    weights = Weights.random(300, 900, bits, block_size, zero_points=True, bias=False)
    x = rows(300, 900)
    whole = weights.session(threads=1).run(None, {"A": x})[0]
    for threads in (1, 3):
        inference = weights.session(threads=threads)
        for start, count in [(0, 1), (299, 1), (7, 2), (11, 5), (100, 16), (50, 31), (160, 140)]:
            part = inference.run(None, {"A": x[start : start + count]})[0]
            np.testing.assert_array_equal(part, whole[start : start + count])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [3, 40])
def test_what_is_no_number_spoils_its_row_only(instruction_set: str, value: float, count: int) -> None:
    weights = Weights.random(50, 300, 4, 32, zero_points=True, bias=False)
    inference = weights.session()
    x = rows(count, 300)
    clean = inference.run(None, {"A": x})[0]
    x[1, 44] = value
    y = inference.run(None, {"A": x})[0]
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(np.delete(y, 1, 0), np.delete(clean, 1, 0))


def test_leading_dimensions_are_kept() -> None:
    weights = Weights.random(8, 64, 4, 32, zero_points=False, bias=False)
    inference = weights.session()
    assert inference.run(None, {"A": np.zeros((2, 3, 64), np.float32)})[0].shape == (2, 3, 8)
    assert inference.run(None, {"A": np.zeros((1, 0, 64), np.float32)})[0].shape == (1, 0, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 16}, "bits/block_size is 4/16; valid: 2/32 2/64"),
        ({"bits": 3}, "bits/block_size is 3/32"),
        ({"K": 0}, "K is 0"),
        ({"N": -1}, "N -1"),
        ({"N": 9}, "B has type 2 and 256 elements; valid: type 2, 288 elements"),
        ({"g_idx": np.zeros(64, np.int32)}, "g_idx is given"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], message: str) -> None:
    weights = Weights.random(8, 64, 4, 32, zero_points=False, bias=False)
    with pytest.raises(Exception, match=message):
        weights.session(**changes)


def test_rows_of_another_depth_are_refused() -> None:
    inference = Weights.random(8, 64, 4, 32, zero_points=False, bias=False).session()
    with pytest.raises(Exception, match="the last size of A must be K, which is 64"):
        inference.run(None, {"A": np.zeros((1, 65), np.float32)})
