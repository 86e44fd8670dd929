"""The data file holds every tensor at its place, however the work was cut up."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qtool.artifact.data_file import write_data_files
from qtool.artifact.layout import Layout, plan_layout
from qtool.checkpoint.weight import Weight
from qtool.errors import SourceError
from qtool.models.graph import GraphBuilder, add_initializer
from qtool.quantize.schemes import Scheme
from qtool.quantize.storage import IntegerStorage
from qtool.storage import ArrayStorage, FloatStorage, Storage, StoredTensor


def weight(name: str, *shape: int) -> Weight:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return Weight(name, shape, "F32", lambda start, stop: values[start:stop])


def layout_of(*storages: Storage) -> Layout:
    builder = GraphBuilder("storages", ir.DataType.FLOAT)
    for index, storage in enumerate(storages):
        for part in range(len(storage.parts)):
            add_initializer(builder.graph, StoredTensor(f"{index}.{part}", storage, part))
    return plan_layout(ir.Model(builder.graph, ir_version=10))


LARGE = weight("large", 9_001, 96)  # 864,000 weights: several chunks, the last one not full
WIDE = weight("wide", 3, 400_000)  # a row is more than a chunk
NORM = weight("norm", 300_001)


def storages() -> list[Storage]:
    integers = [
        IntegerStorage(matrix, Scheme(bits, 32, symmetric), dtype)
        for matrix in (LARGE, WIDE)
        for bits, symmetric, dtype in (
            (4, False, ir.DataType.FLOAT),
            (4, True, ir.DataType.FLOAT16),
            (8, False, ir.DataType.FLOAT16),
        )
    ]
    table = ArrayStorage("table", np.arange(100_000, dtype=np.float32).reshape(50_000, 2))
    return [*integers, FloatStorage(LARGE, ir.DataType.FLOAT16), FloatStorage(NORM, ir.DataType.FLOAT), table]


def check(path: Path, layout: Layout) -> None:
    content = path.read_bytes()
    assert len(content) == layout.size
    for placement in layout.placements.values():
        parts = placement.storage.parts
        whole = placement.storage.compute(0, parts[0].shape[0])
        for part, offset, array in zip(parts, placement.offsets, whole, strict=True):
            assert content[offset : offset + part.nbytes] == array.tobytes(), placement.storage.key


@pytest.mark.parametrize("threads", [1, 3])
def test_every_tensor_is_at_its_place(tmp_path: Path, threads: int) -> None:
    layout = layout_of(*storages())
    calls: list[tuple[int, int]] = []
    write_data_files([(tmp_path / "data", layout)], threads, lambda *call: calls.append(call))
    check(tmp_path / "data", layout)
    assert len(calls) > 5
    assert calls[-1][0] == sum(part.nbytes for storage in storages() for part in storage.parts)


def test_several_files_share_what_they_have_in_common(tmp_path: Path) -> None:
    """Each at its own offset."""
    everything = storages()
    layouts = [layout_of(*everything), layout_of(*everything[::-2]), layout_of(everything[3])]
    files = [(tmp_path / str(index), layout) for index, layout in enumerate(layouts)]
    write_data_files(files, 2, lambda done, total: None)
    for path, layout in files:
        check(path, layout)


def test_gaps_between_tensors_are_zeros(tmp_path: Path) -> None:
    small, large, other = (
        FloatStorage(each, ir.DataType.FLOAT) for each in (weight("a", 3), LARGE, weight("bb", 5))
    )
    layout = layout_of(small, large, other)
    write_data_files([(tmp_path / "data", layout)], 1, lambda done, total: None)
    content = (tmp_path / "data").read_bytes()
    after = layout.placements[small.key].offsets[0] + 12
    assert layout.placements[other.key].offsets[0] == after + 52, "the next multiple of 64"
    assert content[after : after + 52] == bytes(52)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(FileExistsError):
        write_data_files([(tmp_path / "data", layout_of(storages()[0]))], 1, lambda done, total: None)
    assert (tmp_path / "data").read_text() == "mine"


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_error_ends_the_work(tmp_path: Path, threads: int) -> None:
    reads: list[int] = []

    def read(start: int, stop: int) -> np.ndarray:
        reads.append(start)
        time.sleep(0.002)
        raise SourceError("this row is damaged")

    broken = Weight("broken", (1_000_000, 64), "F32", read)  # 245 chunks
    layout = layout_of(FloatStorage(broken, ir.DataType.FLOAT))
    with pytest.raises(SourceError, match="this row is damaged"):
        write_data_files([(tmp_path / "data", layout)], threads, lambda done, total: None)
    assert len(reads) < 100
