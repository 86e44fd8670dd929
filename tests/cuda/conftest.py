"""Where the tests of CUDA artifacts run: on the first NVIDIA GPU, or nowhere.

They need onnxruntime-gpu (`pip install "qtool-edge[cuda]"`) and a device, and are skipped where one is
missing. With QTOOL_REHEARSE_CUDA=1 they run on the CPU provider: that tests the tests.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime
import pytest

import qtool_runtime
from qtool_runtime.errors import IncompatibleRuntimeError
from support.fixtures import Artifacts


@pytest.fixture(scope="session")
def provider(tiny_artifact: Artifacts) -> str:
    """What `load` is told: "cuda", once a tiny artifact has been loaded there."""
    if os.environ.get("QTOOL_REHEARSE_CUDA"):
        return "cpu"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("no CUDA: this onnxruntime has no CUDA provider")
    try:
        with qtool_runtime.load(tiny_artifact("cuda-fp16"), provider="cuda"):
            return "cuda"
    except IncompatibleRuntimeError as error:
        pytest.skip(f"no CUDA: {error.message}")


@pytest.fixture(scope="session", params=["cuda-fp16", "cuda-int4"])
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def nano(target: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, built for CUDA."""
    import qtool

    return qtool.build(target=target, output=tmp_path_factory.mktemp("nano") / target).path
