"""Runs Olive on a model and a text that lie in a folder: `python -m qtool.olive.worker FOLDER`.

FOLDER holds `request.json`, `windows.npy` and the model, `source`; the result is `output/model`. A process of
its own, because Olive and torch keep several gigabytes and change the process they are in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from olive.data.registry import Registry
from olive.workflows import run

from qtool.olive.settings import HIGH_BITS, MIXED_ALGORITHM
from qtool.quantize.recipes import OLIVE_GPTQ, OLIVE_MIXED

REQUEST, WINDOWS, SOURCE, OUTPUT = "request.json", "windows.npy", "source", "output"
_DATA = "qtool_windows"


def main(folder: Path) -> None:
    """Quantizes the model."""
    request = json.loads((folder / REQUEST).read_text("utf-8"))
    torch.set_num_threads(request["threads"])
    windows = np.load(folder / WINDOWS, allow_pickle=False)

    def load_windows(**_others: object) -> list[tuple[dict[str, torch.Tensor], int]]:
        ids = torch.from_numpy(windows)
        return [({"input_ids": window, "attention_mask": torch.ones_like(window)}, 0) for window in ids]

    Registry.register_dataset(_DATA)(load_windows)
    run(_workflow(request, folder))


def _workflow(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the configuration of an Olive run."""
    scheme = {"bits": request["bits"], "group_size": request["group_size"], "sym": request["symmetric"]}
    passes = {
        OLIVE_MIXED: {"algorithm": MIXED_ALGORITHM, "bits": request["bits"], "high_bits": HIGH_BITS},
        OLIVE_GPTQ: {**scheme, "data_config": _DATA},
    }
    device = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    return {
        "input_model": {"type": "HfModel", "model_path": str(folder / SOURCE)},
        "systems": {"local": {"type": "LocalSystem", "accelerators": [device]}},
        "host": "local",
        "target": "local",
        "data_configs": [
            {
                "name": _DATA,
                "load_dataset_config": {"type": _DATA},
                "pre_process_data_config": {"type": "skip_pre_process"},
                "post_process_data_config": {"type": "skip_post_process"},
                "dataloader_config": {"type": "default_dataloader", "batch_size": 1},
            }
        ],
        "passes": {name: {"type": name, **passes[name]} for name in request["passes"]},
        "output_dir": str(folder / OUTPUT),
        "cache_dir": str(folder / "cache"),
        "evaluate_input_model": False,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
