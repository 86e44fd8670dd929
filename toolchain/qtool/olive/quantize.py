"""Gives a model to Olive, and takes its integers over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtool.checkpoint import Checkpoint
from qtool.checkpoint.files import read_json_object
from qtool.checkpoint.folder_writer import write_folder
from qtool.checkpoint.quantization import Quantization, read_quantization
from qtool.checkpoint.quantized_weights import quantized_weights
from qtool.checkpoint.shards import read_folder_tensors
from qtool.errors import QtoolError
from qtool.olive.settings import ALGORITHM, PACKAGES, olive_scheme
from qtool.quantize.schemes import Scheme
from qtool_targets import Target

_ALONE = {"OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
"""Nothing is sent, and nothing is fetched."""


def quantize_with_olive(
    checkpoint: Checkpoint,
    target: Target,
    windows: NDArray[np.int64],
    passes: tuple[str, ...],
    *,
    folder: Path,
    threads: int,
) -> Checkpoint:
    """Returns the checkpoint with the matrices of its layers as Olive quantized them.

    Args:
        checkpoint: a model in floats.
        target: decides bits, group size and the type of scales.
        windows: token ids of the calibration text, (windows, tokens).
        passes: of Olive, in their order.
        folder: for the files that both processes share; the integers stay there.
        threads: of Olive.

    Raises:
        QtoolError: Olive failed.
        SourceError: its result is not what was asked for.
    """
    scheme = olive_scheme(target)
    source = folder / "source"
    source.mkdir()
    write_folder(checkpoint, source, target.precision.activations)
    np.save(folder / "windows.npy", windows)
    request = {
        "passes": passes,
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "symmetric": scheme.symmetric,
        "threads": threads,
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    _run(folder)
    shutil.rmtree(source)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return _taken_over(checkpoint, folder / "output" / "model")


def _run(folder: Path) -> None:
    """Runs the worker; its output is kept only to say why it failed."""
    done = subprocess.run(
        [sys.executable, "-m", "qtool.olive.worker", str(folder)],
        env=os.environ | _ALONE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode != 0 or not (folder / "output" / "model").is_dir():
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        raise QtoolError(
            f"Olive failed (exit code {done.returncode}): {lines[-1] if lines else 'it printed nothing'}",
            hint="Install the versions that qtool is tested with (olive-ai 0.13, transformers 5), or use"
            " --recipe balanced.",
        )


def _taken_over(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Returns the checkpoint with the matrices in a folder that Olive wrote."""
    quantization = read_quantization(read_json_object(folder / "config.json"))
    if quantization is None:
        raise QtoolError("Olive did not quantize the model", hint="Use --recipe balanced.")
    _, tensors = read_folder_tensors(folder, {path.name for path in folder.iterdir()})
    weights, _ = quantized_weights(quantization, checkpoint.config, tensors)
    own = {name: replace(weight, scheme=_named(weight.scheme)) for name, weight in weights.items()}
    return replace(checkpoint, weights=dict(checkpoint.weights) | own, quantization=_made_here(quantization))


def _named(scheme: Scheme) -> Scheme:
    """Returns a scheme whose integers are not the source's, but were made in this build."""
    return replace(scheme, algorithm=ALGORITHM)


def _made_here(quantization: Quantization) -> Quantization:
    own = {module: _named(scheme) for module, scheme in quantization.own.items()}
    return replace(quantization, scheme=_named(quantization.scheme), own=own, made_by=PACKAGES)
