"""The model file, opened: an ONNX Runtime session and what is known about its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qtool_runtime.compatibility import Provider, import_onnxruntime
from qtool_runtime.engine import EngineOptions
from qtool_runtime.errors import ArtifactError, IncompatibleRuntimeError
from qtool_runtime.kernels import Kernels
from qtool_runtime.kv_cache import CacheLayout
from qtool_runtime.manifest import Manifest
from qtool_runtime.threads import Threads

PREFILL_CHUNK = 512
"""Tokens of a prompt per run. Activations grow with the chunk: a prompt of 2,048 tokens takes a 0.5B model
25 MB beside its cache in chunks of 512, and 160 MB in one piece, at the same speed (a matrix product gains
little beyond some hundred rows)."""

PREFILL_CHUNK_ALL_LOGITS = 64
"""The same for graphs that return logits at every position: a row of 151,936 takes 600 kB."""

LOGITS_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}

CACHE_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "int8": "tensor(int8)"}
"""What ONNX Runtime calls a cached tensor, by the manifest's dtype."""


@dataclass(frozen=True)
class LoadedGraph:
    """A model file that is ready to run. It holds no tokens and can serve several sessions at once.

    Attributes:
        inference: the `onnxruntime.InferenceSession`.
        cache_layout: the cached tensors.
        context: longest sequence, in tokens.
        vocab_size: numbers per row of logits.
        logits_dtype: float32 or float16.
        logits_rows_input: name of the input that says how many rows of logits to return, if there is one.
        takes_positions: whether the graph has the input `position_ids`.
        attention_mask: int64 ones of shape (1, capacity), of which each run binds the first part.
        positions: int64 0, 1, 2, … of shape (1, capacity), likewise.
        prefill_chunk: most tokens per run.
        reads_one_behind_others: see `Provider`; then a run at the start has any number of tokens.
        takes_batches: whether one run can extend several sequences: their number is not fixed in the graph,
            and their keys and values can share buffers in host memory.
        row_multiple: a run reads a multiple of so many tokens: those that are missing are filled in behind
            the last one, and forgotten (see `exact_drafts.py`).
    """

    inference: Any
    cache_layout: CacheLayout
    context: int
    vocab_size: int
    logits_dtype: np.dtype[Any]
    logits_rows_input: str | None
    takes_positions: bool
    attention_mask: np.ndarray[Any, np.dtype[np.int64]]
    positions: np.ndarray[Any, np.dtype[np.int64]]
    prefill_chunk: int
    reads_one_behind_others: bool
    takes_batches: bool
    row_multiple: int = 1

    @property
    def capacity(self) -> int:
        """Most tokens that the KV cache has room for, those that are filled in included."""
        return int(self.attention_mask.shape[1])

    def with_row_multiple(self, multiple: int) -> LoadedGraph:
        """Returns the graph with runs over multiples of so many tokens; the context makes room for that."""
        return replace(self, row_multiple=multiple, context=self.capacity - (multiple - 1))


def open_graph(
    folder: Path, manifest: Manifest, provider: Provider, kernels: Kernels, options: EngineOptions
) -> LoadedGraph:
    """Creates the ONNX Runtime session and checks that the graph is the one that the manifest describes.

    Args:
        folder: the artifact.
        manifest: its manifest.
        provider: where to run.
        kernels: what computes matrix products and attention.
        options: what else was asked for; provider and kernels in it are chosen already.

    Raises:
        IncompatibleRuntimeError: ONNX Runtime cannot create the session, or not on that provider.
        ArtifactError: the graph's inputs and outputs are not the manifest's.
    """
    layout = CacheLayout.from_manifest(manifest, provider.device)
    inference = _create_session(folder / manifest.graph.file, manifest, provider, kernels, options.threads)
    given = [*inference.get_inputs(), *inference.get_overridable_initializers()]
    inputs = {value.name: value.type for value in given}
    outputs = {value.name: value for value in inference.get_outputs()}
    rows_input = manifest.graph.logits_rows_input
    expected = {"input_ids", "attention_mask", *(past for past, _ in layout.names)}
    expected |= {rows_input} if rows_input else set()
    _check_names("inputs", list(inputs), expected, optional={"position_ids"})
    _check_names(
        "outputs", list(outputs), {"logits", *(present for _, present in layout.names)}, optional=set()
    )
    for past, _ in layout.names:
        if inputs[past] != CACHE_TYPES[manifest.kv_cache.dtype]:
            raise ArtifactError(
                f"the graph's input {past} is {inputs[past]}; the manifest says {manifest.kv_cache.dtype}"
            )
    if outputs["logits"].type not in LOGITS_DTYPES:
        raise ArtifactError(
            f"the graph's logits are {outputs['logits'].type}; known: {', '.join(LOGITS_DTYPES)}"
        )
    return LoadedGraph(
        inference=inference,
        cache_layout=layout,
        context=options.context,
        vocab_size=manifest.model.vocab_size,
        logits_dtype=LOGITS_DTYPES[outputs["logits"].type],
        logits_rows_input=rows_input,
        takes_positions="position_ids" in inputs,
        attention_mask=np.ones((1, options.context), np.int64),
        positions=np.arange(options.context, dtype=np.int64)[None],
        prefill_chunk=PREFILL_CHUNK if rows_input else PREFILL_CHUNK_ALL_LOGITS,
        reads_one_behind_others=provider.reads_one_behind_others and layout.update == "in_place",
        takes_batches=layout.update == "in_place"
        and layout.device == "cpu"
        and bool(rows_input)
        and not isinstance(inference.get_inputs()[0].shape[0], int),
    )


def _create_session(
    path: Path, manifest: Manifest, provider: Provider, kernels: Kernels, threads: Threads
) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads.count
    for name, value in threads.session_entries.items():
        options.add_session_config_entry(name, value)
    options.inter_op_num_threads = 1
    # Errors only: the graph declares one row of logits, and ONNX Runtime warns whenever it returns more.
    options.log_severity_level = 3
    # A memory pattern is kept for every new input shape, and every token of a generation is a new shape.
    options.enable_mem_pattern = False
    model: str | bytes = str(path)
    if kernels.pack:
        model = kernels.point(path, manifest)
        # Where the weights are, which a file's own path would tell.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent)
        )
    try:
        with kernels.registered(options):
            inference = onnxruntime.InferenceSession(model, options, providers=[provider.onnxruntime_name])
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf as error:
        raise ArtifactError(f"{path} is not a model: {error}", hint="Build the artifact again.") from error
    except Exception as error:  # the others share no base of their own
        installed = f"onnxruntime {onnxruntime.__version__} ({provider.onnxruntime_name})"
        raise IncompatibleRuntimeError(
            f"{installed} cannot load {path.name}: {error}",
            hint="Check the artifact with `qtool verify`; if it is whole, install a newer onnxruntime.",
        ) from error
    inference.disable_fallback()
    if inference.get_providers()[0] != provider.onnxruntime_name:
        raise IncompatibleRuntimeError(
            f"onnxruntime could not start {provider.onnxruntime_name}; it has {inference.get_providers()}",
            hint=f'Install what {provider.onnxruntime_name} needs, or pass provider="cpu" to run on the CPU.',
        )
    return inference


def _check_names(kind: str, found: Sequence[str], expected: set[str], optional: set[str]) -> None:
    if missing := sorted(expected - set(found)):
        raise ArtifactError(f"the graph lacks the {kind} {missing[:3]} that the manifest names")
    if unknown := sorted(set(found) - expected - optional):
        raise ArtifactError(f"the graph has the {kind} {unknown[:3]}, which this runtime cannot feed")
