"""What the tests of the `optimum` exporter share. Most of them need the extra `optimum`.

They ask for the module `optimum.exporters.onnx`, because a folder called `optimum` is importable by itself.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import qtool
from support.fixtures import Artifacts, Checkpoints

MODELS = [("qwen2", True), ("qwen2", False), ("qwen3", True), ("qwen3", False)]


@pytest.fixture(params=MODELS, ids=lambda model: f"{model[0]}-{'tied' if model[1] else 'untied'}")
def model(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Architecture, and whether embedding and LM head are one tensor."""
    found: tuple[str, bool] = request.param
    return found


@pytest.fixture(scope="session")
def optimum_artifact(tiny_checkpoint: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """`optimum_artifact("x64-int4", "qwen3", tied=False)`: like `tiny_artifact`, of the other exporter."""

    @cache
    def artifact(target: str, architecture: str = "qwen2", tied: bool = True) -> Path:
        source = tiny_checkpoint(architecture, tied=tied).folder
        output = tmp_path_factory.mktemp("optimum") / target
        return qtool.build(source, target=target, output=output, exporter="optimum").path

    return artifact
