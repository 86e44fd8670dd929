"""One node in a graph of its own, with the operators of the kernel pack or with ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

qtool_kernels = pytest.importorskip("qtool_kernels", reason="qtool-kernels is not installed")


@pytest.fixture(params=qtool_kernels.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this processor in turn; kernels that the test creates use it."""
    qtool_kernels.select(request.param)
    yield request.param
    qtool_kernels.select(qtool_kernels.instruction_sets()[0])
