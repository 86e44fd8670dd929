from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.places import real_model, shared_folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with official configurations, tokenizers and corpora."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("no folder with shared material (set QTOOL_SHARED)")
    return folder


@pytest.fixture(scope="session", params=["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def real_gguf(request: pytest.FixtureRequest) -> Path:
    """A publisher's GGUF file."""
    path = real_model(request.param)
    if path is None:
        pytest.skip(f"no real checkpoint {request.param} (set QTOOL_REAL_MODELS)")
    return path


@pytest.fixture
def peak_bytes() -> Iterator[Callable[[], int]]:
    """Gives the most memory that Python objects and arrays have taken since the test began."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
