"""The emulated Arm processors, for tests that are marked `emulated`.

They run where QTOOL_EMULATED is set. There qemu has to be installed; where the packages of the emulated
system cannot be fetched, tests are skipped and say so.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest

import qtool
import qtool_runtime
import qtool_targets
from qtool.emulate.emulator import Root
from qtool.emulate.packages import FetchError
from qtool.emulate.root import RUNTIME_MODULES, installed, prepare_root, runtime_requirements

ARM_TARGETS = ("android-arm64-int4", "arm64-int4", "arm64-int8")

BUILD_PACKAGES = (
    "numpy", "tokenizers", "jinja2", "markupsafe", "click", "onnx", "onnx-ir", "ml_dtypes", "protobuf",
    "typing_extensions", "packaging", "sympy", "mpmath",
)  # fmt: skip
"""What a build needs, and what that needs."""
BUILD_MODULES = ("numpy", "tokenizers", "jinja2", "click", "onnx", "onnx_ir")


def require_emulation() -> None:
    """Skips the test where nobody asked for emulation."""
    if not os.environ.get("QTOOL_EMULATED"):
        pytest.skip(
            "set QTOOL_EMULATED=1 to run on emulated Arm processors (needs qemu, and once the network)"
        )


def runtime_root() -> Root:
    """Returns a system that runs artifacts."""
    return _root(runtime_requirements(), RUNTIME_MODULES)


def build_root() -> Root:
    """Returns a system that builds artifacts."""
    return _root(installed(BUILD_PACKAGES), BUILD_MODULES)


def genai_root() -> Root:
    """Returns a system with onnxruntime-genai."""
    pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")
    requirements = [runtime_requirements()[0], *installed(["numpy", "onnxruntime-genai"])]
    return _root(requirements, ["numpy", "onnxruntime_genai"])


def own_packages() -> list[Path]:
    """Returns the folders of our packages, and the one that says which version they have."""
    folders = [Path(str(module.__file__)).parent for module in (qtool, qtool_runtime, qtool_targets)]
    files = metadata.distribution("qtool-edge").files or []
    return [*folders, *(Path(file.locate()).parent for file in files if file.name == "METADATA")]


def _root(requirements: Sequence[str], modules: Sequence[str]) -> Root:
    require_emulation()
    try:
        return prepare_root(requirements, modules, print)
    except FetchError as error:
        pytest.skip(error.message)
