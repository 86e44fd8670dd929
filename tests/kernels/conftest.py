"""Each test of a kernel runs on all instruction sets that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "instruction_set" in metafunc.fixturenames:
        import qtool_kernels  # test files without it are skipped before they come here

        metafunc.parametrize("instruction_set", qtool_kernels.instruction_sets(), indirect=True)


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the instruction set that the kernels of this test's sessions use."""
    import qtool_kernels

    qtool_kernels.select(request.param)
    yield request.param
    qtool_kernels.select(qtool_kernels.instruction_sets()[0])
