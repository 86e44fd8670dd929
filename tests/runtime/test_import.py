"""Importing is cheap, and a whole generation brings in nothing that the runtime does not name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def modules_after(code: str) -> set[str]:
    """Top-level modules of a fresh interpreter after `code`."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import qtool_runtime") & {"numpy", "onnxruntime", "tokenizers", "jinja2"}


def test_public_names_are_all_there() -> None:
    code = (
        "import qtool_runtime\nfor name in qtool_runtime.__all__: assert getattr(qtool_runtime, name), name"
    )
    assert not modules_after(code) & {"onnxruntime", "tokenizers", "jinja2"}


def test_unknown_names_are_attribute_errors() -> None:
    import qtool_runtime

    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        qtool_runtime.laod  # noqa: B018


def test_generating_needs_the_named_packages_only(artifact: Path) -> None:
    code = f"""
import qtool_runtime
with qtool_runtime.load({str(artifact)!r}) as model:
    assert model.generate("the cat", max_tokens=3).read()
    assert model.chat([{{"role": "user", "content": "the cat"}}], max_tokens=3, temperature=0).read()
"""
    loaded = modules_after(code)
    assert {"numpy", "onnxruntime", "tokenizers", "jinja2"} <= loaded
    assert not loaded & {
        "torch",
        "transformers",
        "onnx",
        "onnx_ir",
        "llguidance",
        "click",
        "rich",
        "qtool",
        "qtool_targets",
    }
