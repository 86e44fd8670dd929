"""The tables of kernels against the list that the installed onnxruntime has of its own, provider by provider.

A wheel for the CPU knows the CPU's kernels; where onnxruntime-gpu or -directml is installed, theirs are
compared too.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as bindings

from qtool.passes.kernels import Kernel, kernels_of
from qtool_runtime.compatibility import PROVIDERS

OURS = {"float": "float32"}
"""Names of types that onnxruntime spells otherwise."""
CASTS = {"cpu": {"float16"}}
"""Types that a provider takes through casts, which onnxruntime inserts around nodes without such a kernel."""


@cache
def registered() -> dict[tuple[str, str, str], list[Any]]:
    """Returns (provider, domain, operator) -> kernels."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    for kernel in bindings.get_all_opkernel_def():
        found.setdefault((kernel.provider, kernel.domain, kernel.op_name), []).append(kernel)
    return found


def matching(kernels: list[Any], since: int) -> list[Any]:
    """Returns the kernels for a version of an operator; an open range stands for its first version only."""
    ranges = [(*kernel.version_range, kernel) for kernel in kernels]
    return [kernel for first, last, kernel in ranges if since == first or first <= since <= last < 2**31 - 1]


def types_of(kernels: list[Any], variable: str) -> set[str] | None:
    """Returns what a type may be in any of the kernels; None if they do not say."""
    lists = [kernel.type_constraints[variable] for kernel in kernels if variable in kernel.type_constraints]
    names = {name.removeprefix("tensor(").removesuffix(")") for names in lists for name in names}
    return {OURS.get(name, name) for name in names} if lists else None


@pytest.mark.parametrize("provider", PROVIDERS)
def test_onnxruntime_lists_what_the_table_has(provider: str) -> None:
    installed = tuple(int(part) for part in version("onnxruntime").split(".")[:2])
    if installed < (1, 27):
        pytest.skip("the tables are of later versions")
    name = PROVIDERS[provider].onnxruntime_name
    if name not in {key[0] for key in registered()}:
        pytest.skip(f"this onnxruntime does not list kernels of {name}")
    for (domain, operator), kernel in kernels_of(provider).kernels.items():
        kernels = registered().get((name, domain, operator), [])
        for since in kernel.since or (1,):
            check(provider, f"{operator} {since}", kernel, matching(kernels, since))


def check(provider: str, what: str, row: Kernel, kernels: list[Any]) -> None:
    assert kernels, f"{what}: no kernel"
    for variable, types in row.types.items():
        listed = types_of(kernels, variable)
        if listed is not None:
            missing = set(types) - listed - CASTS.get(provider, set())
            assert not missing, f"{what}: {variable} has no {missing}"


def test_the_comparison_can_fail() -> None:
    kernel = next(iter(registered()["CPUExecutionProvider", "", "Cos"]))
    row = Kernel((7,), {"T": ("int64",)}, {}, (), (), whole_bytes=False)
    with pytest.raises(AssertionError, match="Cos 7: T has no"):
        check("cpu", "Cos 7", row, [kernel])
    with pytest.raises(AssertionError, match="no kernel"):
        check("cpu", "Cos 5", row, matching([kernel], 5))
