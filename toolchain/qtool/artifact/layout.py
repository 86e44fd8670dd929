"""Where each tensor lies in the data file: offsets are decided before a byte is written."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qtool.quantize.alignment import aligned, alignment
from qtool.storage import Storage, StoredTensor

DATA_FILE = "model.onnx.data"


@dataclass(frozen=True)
class Placement:
    """A storage and the offset of each of its parts in the data file."""

    storage: Storage
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """The whole data file."""

    placements: dict[str, Placement]
    """By storage key, in the graph's order."""
    size: int


def plan_layout(model: ir.Model) -> Layout:
    """Gives every storage that the graph refers to its place; equal storages share one.

    Large tensors come first: their sizes are multiples of a page, or nearly so, and hardly a gap is left.
    """
    tensors = (value.const_value for value in model.graph.initializers.values())
    storages = {tensor.storage.key: tensor.storage for tensor in tensors if isinstance(tensor, StoredTensor)}
    parts = [
        (key, index, part) for key, storage in storages.items() for index, part in enumerate(storage.parts)
    ]
    offsets: dict[tuple[str, int], int] = {}
    end = 0
    for key, index, part in sorted(parts, key=lambda item: -alignment(item[2].nbytes)):
        start = aligned(end, alignment(part.nbytes))
        offsets[key, index] = start
        end = start + part.nbytes
    return Layout(
        {
            key: Placement(storage, tuple(offsets[key, index] for index in range(len(storage.parts))))
            for key, storage in storages.items()
        },
        end,
    )


def refer_to_data_file(model: ir.Model, layout: Layout) -> None:
    """Replaces every stored tensor of the graph by a reference into the data file."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, StoredTensor):
            part = tensor.storage.parts[tensor.part]
            value.const_value = ir.ExternalTensor(
                location=DATA_FILE,
                offset=layout.placements[tensor.storage.key].offsets[tensor.part],
                length=part.nbytes,
                dtype=part.dtype,
                shape=ir.Shape(tensor.shape),
                name=value.name or "",
            )
