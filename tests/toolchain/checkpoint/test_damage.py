"""Damaged and hostile files: a proper error or the right values, never a crash or a huge allocation."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qtool.checkpoint import Checkpoint, open_checkpoint
from qtool.errors import QtoolError
from support.tiny import FloatArray, write_tiny_checkpoint
from support.tiny_gguf import Type, write_tiny_gguf

MAX_PEAK_BYTES = 24 * 2**20
"""Most of it is what reading any checkpoint takes; the files have some hundred kilobytes."""

Damage = tuple[str, int, int]
"""What to do ("byte", "u32", "u64", "cut"), where, and with which value."""

NUMBERS = [0, 1, 2, 7, 31, 127, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
DAMAGES = st.lists(
    st.tuples(
        st.sampled_from(["byte", "byte", "u32", "u64", "cut"]),
        st.integers(0, 2**16),
        st.one_of(st.sampled_from(NUMBERS), st.integers(0, 2**64 - 1)),
    ),
    min_size=1,
    max_size=3,
)
PROPERTY = settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def damaged(content: bytes, damages: list[Damage], reach: int) -> bytes:
    """Returns `content` with damages in its first `reach` bytes (a cut may be anywhere)."""
    result = bytearray(content)
    for kind, place, value in damages:
        if kind == "cut":
            del result[value % (len(content) + 1) :]
            continue
        layout = {"byte": "<B", "u32": "<I", "u64": "<Q"}[kind]
        size = struct.calcsize(layout)
        at = place % (reach - size + 1)
        if at + size <= len(result):
            struct.pack_into(layout, result, at, value % 2 ** (8 * size))
    return bytes(result)


def open_and_read(path: Path) -> tuple[Checkpoint, dict[str, FloatArray]] | None:
    """Opens a source and reads everything, or returns None where that is properly refused."""
    tracemalloc.start()
    try:
        opened = open_checkpoint(str(path))
        values = {name: weight.read_all() for name, weight in opened.weights.items()}
        opened.tokenizer_files()
        return opened, values
    except QtoolError as error:
        assert error.message
        assert error.exit_code in (3, 4)
        assert len(error.message) < 1500
        assert error.message.isprintable()
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MAX_PEAK_BYTES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    tiny = write_tiny_checkpoint(tmp_path_factory.mktemp("damaged") / "m", num_hidden_layers=1)
    return tiny.folder, (tiny.folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("damaged") / "a.gguf"
    write_tiny_gguf(path, num_hidden_layers=1, types={"model.embed_tokens.weight": Type.Q5_0})
    return path, path.read_bytes()


@given(DAMAGES)
@example([("u64", 0, 2**64 - 1)])
@example([("cut", 0, 9)])
@example([("u32", 1559, 9)])
@PROPERTY
def test_damage_in_the_header_of_safetensors(folder: tuple[Path, bytes], damages: list[Damage]) -> None:
    """Header and length: whatever is still accepted has the same values as before."""
    path, content = folder
    (length,) = struct.unpack_from("<Q", content)
    (path / "model.safetensors").write_bytes(content)
    expected = open_and_read(path)
    assert expected is not None
    (path / "model.safetensors").write_bytes(damaged(content, damages, 8 + length))
    found = open_and_read(path)
    if found is not None:
        assert found[0].config == expected[0].config
        for name, values in expected[1].items():
            np.testing.assert_array_equal(found[1][name], values)


@given(DAMAGES)
@PROPERTY
def test_damage_in_the_values_of_safetensors(folder: tuple[Path, bytes], damages: list[Damage]) -> None:
    path, content = folder
    (path / "model.safetensors").write_bytes(content[:2000] + damaged(content[2000:], damages, 60_000))
    found = open_and_read(path)
    assert found is None or all(np.isfinite(values).all() for values in found[1].values())


@given(DAMAGES)
@example([("u64", 8, 2**64 - 1)])
@example([("u64", 16, 2**63)])
@PROPERTY
def test_damage_in_a_gguf_file(gguf_file: tuple[Path, bytes], damages: list[Damage]) -> None:
    """Metadata have no check-sums, so that values may change: but shapes, and what is read, stay sound."""
    path, content = gguf_file
    path.write_bytes(damaged(content, damages, 14_000))
    found = open_and_read(path)
    if found is not None:
        for name, weight in found[0].weights.items():
            assert found[1][name].shape == weight.shape
            assert np.isfinite(found[1][name]).all()


@pytest.mark.parametrize("layers", [50, 2**31 - 1])
def test_a_hostile_number_of_layers(tmp_path: Path, layers: int) -> None:
    tiny = write_tiny_checkpoint(tmp_path / "m")
    config = (tiny.folder / "config.json").read_text()
    (tiny.folder / "config.json").write_text(
        config.replace('"num_hidden_layers": 2', f'"num_hidden_layers": {layers}')
    )
    assert open_and_read(tiny.folder) is None

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["qwen2.block_count"].value = layers

    assert open_and_read(write_tiny_gguf(tmp_path / "a.gguf", edit=edit).path) is None


@given(st.integers(0, 20_000))
@PROPERTY
def test_a_gguf_file_that_ends_early(gguf_file: tuple[Path, bytes], length: int) -> None:
    path, content = gguf_file
    path.write_bytes(content[:length])
    assert open_and_read(path) is None


@given(
    name=st.sampled_from(
        ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
    ),
    damages=DAMAGES,
)
@PROPERTY
def test_damage_in_the_small_files_of_a_folder(
    folder: tuple[Path, bytes], name: str, damages: list[Damage]
) -> None:
    path, content = folder
    (path / "model.safetensors").write_bytes(content)
    original = (path / name).read_bytes()
    try:
        (path / name).write_bytes(damaged(original, damages, len(original)))
        open_and_read(path)
    finally:
        (path / name).write_bytes(original)
