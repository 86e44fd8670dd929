"""Where each tensor lies in the data file: offsets are decided before a byte is written."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qtool.storage import Storage, StoredTensor

DATA_FILE = "model.onnx.data"

_ALIGNMENT = 64
"""Every tensor starts at a multiple of this: the width of the widest vector load."""
_PAGE = 16 * 1024
_PAGE_ALIGNED_FROM = 1 << 20
"""Tensors from this size on start on a page of their own (16 KiB on recent Android devices), so that mapping
one does not touch the next."""


@dataclass(frozen=True)
class Placement:
    """A storage and the offset of each of its parts in the data file."""

    storage: Storage
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """The whole data file."""

    placements: dict[str, Placement]
    """By storage key, in file order."""
    size: int


def plan_layout(model: ir.Model) -> Layout:
    """Gives every storage that the graph refers to its place; equal storages share one."""
    placements: dict[str, Placement] = {}
    end = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, StoredTensor) or tensor.storage.key in placements:
            continue
        offsets = []
        for part in tensor.storage.parts:
            alignment = _PAGE if part.nbytes >= _PAGE_ALIGNED_FROM else _ALIGNMENT
            offsets.append(-(-end // alignment) * alignment)
            end = offsets[-1] + part.nbytes
        placements[tensor.storage.key] = Placement(tensor.storage, tuple(offsets))
    return Layout(placements, end)


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
