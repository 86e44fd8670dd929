"""One artifact on its way to disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qtool.artifact.data_file import Progress, write_data_files
from qtool.artifact.describe import (
    MODEL_FILE,
    describe,
    generation_defaults,
    graph_interface,
    kv_cache,
    model_info,
)
from qtool.artifact.layout import DATA_FILE, plan_layout, refer_to_data_file
from qtool.calibration.kv_cache import measure_scales
from qtool.checkpoint import Checkpoint
from qtool.passes.quantize_kv_cache import QuantizeKvCache
from qtool.quantize.formats import Formats
from qtool_runtime import manifest
from qtool_runtime.genai_config import FILE_NAME as GENAI_FILE
from qtool_runtime.genai_config import genai_config
from qtool_runtime.integrity import sha256_of
from qtool_runtime.manifest import Calibration, FileEntry, Manifest
from qtool_targets import Target

_CALIBRATED_FILE = ".calibration.onnx"
"""The graph before its KV cache is quantized; beside the weights, because it reads them."""


class Package:
    """The files of one artifact: weights first, then graph and tokenizer, the manifest last."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        target: Target,
        formats: Formats,
        context: int,
        exporter: str,
        *,
        model: ir.Model,
    ) -> None:
        self._checkpoint = checkpoint
        self._target = target
        self._formats = formats
        self._context = context
        self._exporter = exporter
        self._model = model
        self._layout = plan_layout(model)

    @staticmethod
    def write_weights(packages: Sequence[tuple[Package, Path]], threads: int, progress: Progress) -> None:
        """Writes the data files of several packages in one pass over the source."""
        files = [(folder / DATA_FILE, package._layout) for package, folder in packages]
        write_data_files(files, threads, progress)

    def calibrate_kv_cache(self, folder: Path, windows: NDArray[np.int64], threads: int) -> None:
        """Runs the graph over a text, with the weights just written, and makes its KV cache int8.

        Args:
            folder: where the weights are.
            windows: token ids (windows, tokens).
            threads: threads to use; the result does not depend on them.
        """
        refer_to_data_file(self._model, self._layout)
        graph = folder / _CALIBRATED_FILE
        ir.save(self._model, graph)
        scales = measure_scales(graph, self._checkpoint.config, self._context, list(windows), threads)
        graph.unlink()
        QuantizeKvCache(scales)(self._model)

    def finish(self, folder: Path, calibration: Calibration | None) -> Manifest:
        """Writes everything but the weights, and returns the manifest, which is not written yet.

        Args:
            folder: where the weights are.
            calibration: what the weights or the KV cache were calibrated on.
        """
        refer_to_data_file(self._model, self._layout)
        ir.save(self._model, folder / MODEL_FILE)
        documents = self._checkpoint.tokenizer_files()
        generation = generation_defaults(self._checkpoint.config, documents)
        graph = graph_interface(self._model, self._target)
        cache = kv_cache(self._checkpoint.config, self._target, self._model)
        genai = genai_config(model_info(self._checkpoint.config), graph, cache, generation, self._context)
        for name, content in {**documents, GENAI_FILE: genai.encode()}.items():
            (folder / name).write_bytes(content)
        files = tuple(
            FileEntry(path.name, path.stat().st_size, sha256_of(path))
            for path in sorted(folder.iterdir())
            if not path.name.startswith(".")
        )
        return describe(
            checkpoint=self._checkpoint,
            target=self._target,
            formats=self._formats,
            context=self._context,
            exporter=self._exporter,
            model=self._model,
            layout=self._layout,
            files=files,
            generation=generation,
            calibration=calibration,
        )


def write_manifest(folder: Path, document: Manifest) -> None:
    """Writes the file that makes a folder an artifact, the last one of a build."""
    (folder / manifest.FILE_NAME).write_text(document.to_json(), encoding="utf-8", newline="\n")
