"""GroupQueryAttention of the kernel pack."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from kernels.nodes import OURS, THEIRS, attention

HEADS, KV_HEADS, SIZE = 6, 2, 32


def tokens(count: int, past: int, room: int, *, sequences: int = 1, packed: bool = False) -> dict[str, Any]:
    """Inputs for new tokens behind `past` cached ones in a buffer with room for `room`."""
    random = np.random.default_rng(count + 1000 * past)

    def numbers(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return random.standard_normal(shape).astype(np.float32)

    width = (HEADS + 2 * KV_HEADS if packed else HEADS) * SIZE
    feed: dict[str, Any] = {"q": numbers(sequences, count, width)}
    if not packed:
        feed |= {name: numbers(sequences, count, KV_HEADS * SIZE) for name in "kv"}
    feed |= {f"past_{name}": numbers(sequences, KV_HEADS, room, SIZE) for name in ("key", "value")}
    feed["lengths"] = np.full(sequences, past + count - 1, np.int32)
    feed["total"] = np.array(past + count, np.int32)
    return feed


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("count", "past", "room"), [(5, 0, 0), (40, 0, 64), (1, 7, 7), (1, 33, 64), (4, 100, 128), (20, 9, 29)]
)
def test_close_to_onnxruntime(instruction_set: str, packed: bool, count: int, past: int, room: int) -> None:
    feed = tokens(count, past, room, packed=packed)
    ours, theirs = (
        attention(domain, HEADS, KV_HEADS, SIZE, packed=packed).run(None, feed) for domain in (OURS, THEIRS)
    )
    for ours_part, theirs_part, what in zip(ours, theirs, ("y", "key", "value"), strict=True):
        assert ours_part.shape == theirs_part.shape
        used = slice(None) if what == "y" else np.s_[:, :, : past + count]
        np.testing.assert_allclose(ours_part[used], theirs_part[used], atol=5e-6, err_msg=what)


def test_sequences_of_different_lengths(instruction_set: str) -> None:
    ours, theirs = (attention(domain, HEADS, KV_HEADS, SIZE) for domain in (OURS, THEIRS))
    feed = tokens(1, 20, 32, sequences=3)
    feed["lengths"] = np.array([5, 20, 0], np.int32)
    together = ours.run(None, feed)[0]
    np.testing.assert_allclose(together, theirs.run(None, feed)[0], atol=5e-6)
    for i in range(3):
        alone = {name: value[i : i + 1] if name != "total" else value for name, value in feed.items()}
        np.testing.assert_array_equal(ours.run(None, alone)[0], together[i : i + 1])


def test_a_token_is_the_same_alone_as_a_draft_and_in_a_prompt(instruction_set: str) -> None:
    inference = attention(OURS, HEADS, KV_HEADS, SIZE)
    prompt = tokens(150, 0, 160)
    whole, keys, values = inference.run(None, prompt)
    for count in (1, 2, 5, 16, 17, 60):
        for end in (count, 100, 150):
            if end < count:
                continue
            part = {name: prompt[name][:, end - count : end] for name in "qkv"}
            # What is behind the sequence in its buffer must not matter.
            part["past_key"], part["past_value"] = keys.copy(), values.copy()
            part["past_key"][:, :, end - count :] = np.nan
            part["past_value"][:, :, end - count :] = np.inf
            part |= {"lengths": np.array([end - 1], np.int32), "total": np.array(end, np.int32)}
            np.testing.assert_array_equal(inference.run(None, part)[0], whole[:, end - count : end])


def test_the_cache_is_updated_in_place(instruction_set: str) -> None:
    inference = attention(OURS, HEADS, KV_HEADS, SIZE)
    feed = tokens(3, 10, 64)
    expected = inference.run(None, feed)
    binding = inference.io_binding()
    shared = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(feed[f"past_{name}"]) for name in ("key", "value")
    }
    for name, value in feed.items():
        if not name.startswith("past_"):
            binding.bind_cpu_input(name, value)
    for name, value in shared.items():
        binding.bind_ortvalue_input(f"past_{name}", value)
        binding.bind_ortvalue_output(name, value)
    binding.bind_output("y")
    inference.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[-1].numpy(), expected[0])
    np.testing.assert_array_equal(shared["key"].numpy()[:, :, :13], expected[1][:, :, :13])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_num_heads": 4}, "num_heads must be a multiple"),
        ({"local_window_size": 128}, "local_window_size is 128; valid: -1"),
        ({"rotary_interleaved": 1}, "rotary_interleaved is 1"),
        ({"softcap": 30.0}, "softcap"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        attention(OURS, HEADS, KV_HEADS, SIZE, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": np.array([99], np.int32), "total": np.array(32, np.int32)}, "is longer than its cache"),
        ({"lengths": np.array([1], np.int32), "total": np.array(32, np.int32)}, "is too small"),
        ({"lengths": np.array([1, 2], np.int32)}, "an element for each sequence"),
        ({"q": np.zeros((1, 4, HEADS * 24), np.float32)}, "multiple of 16"),
        ({"k": np.zeros((1, 4, SIZE), np.float32)}, "do not have the shape of kv_num_heads"),
        ({"past_value": np.zeros((1, KV_HEADS, 31, SIZE), np.float32)}, "the same four dimensions"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        attention(OURS, HEADS, KV_HEADS, SIZE).run(None, tokens(4, 10, 32) | changes)
