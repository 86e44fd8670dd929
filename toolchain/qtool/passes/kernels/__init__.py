"""What the kernels of each execution provider take: tables of facts, one file a provider, with its sources.

ONNX Runtime looks a kernel up by operator, version and types when a session is created, and gives nodes that
have none to the CPU, with copies of their tensors back and forth. What a kernel demands beyond that shows
when it runs: as an error, or as wrong numbers. Here, a graph is compared with all of it when it is built.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

_DOMAINS = {"": "standard", "com.microsoft": "microsoft"}
"""Domain of an operator -> its table in the files."""


@dataclass(frozen=True)
class Signature:
    """The inputs of an operator, each a name and a type, and the types of its outputs.

    Types are names such as "float16", variables such as "T", or "@attribute" (see signatures.toml).
    """

    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]

    def input(self, index: int) -> tuple[str, str] | None:
        """Returns name and type of an input; the last one may stand for any number of them."""
        if index < len(self.inputs):
            name, kind = self.inputs[index]
        elif self.inputs and self.inputs[-1][1].endswith("*"):
            name, kind = self.inputs[-1]
        else:
            return None
        return name, kind.removesuffix("*")


@dataclass(frozen=True)
class Kernel:
    """What a provider's kernel for one operator takes."""

    since: tuple[int, ...]
    """Versions of a standard operator; empty for ONNX Runtime's own operators, which have one."""
    types: Mapping[str, tuple[str, ...]]
    """Type variable -> what it may be. A variable that is not here may be anything."""
    attributes: Mapping[str, tuple[int, ...]]
    """Attribute -> its valid values."""
    without: tuple[str, ...]
    """Inputs that must be absent."""
    needs: tuple[str, ...]
    """Inputs that must be there, though they are optional by the operator's definition."""
    whole_bytes: bool
    """Rows of packed zero points must be whole bytes: there is no padding between them."""


@dataclass(frozen=True)
class KernelTable:
    """The kernels of one provider."""

    provider: str
    kernels: Mapping[tuple[str, str], Kernel]
    """(domain, operator) -> its kernel."""
    source: tuple[str, ...]
    """Where the facts were looked up."""


@cache
def signatures() -> Mapping[tuple[str, str], Signature]:
    """Returns (domain, operator) -> its signature, for the operators that our graphs are made of."""
    document = _read("signatures")
    found = {}
    for domain, table in _DOMAINS.items():
        for operator, row in document[table].items():
            pairs = (item.partition(":") for item in row["inputs"])
            inputs = tuple((name, kind) for name, _, kind in pairs)
            found[domain, operator] = Signature(inputs, tuple(row["outputs"]))
    return found


@cache
def kernels_of(provider: str) -> KernelTable:
    """Returns the table of a provider, one of `qtool_targets.schema.PROVIDERS`."""
    document = _read(provider)
    groups = document["groups"]
    kernels = {
        (domain, operator): _kernel(row, groups)
        for domain, table in _DOMAINS.items()
        for operator, row in document[table].items()
    }
    return KernelTable(provider, kernels, tuple(document["source"]))


def _kernel(row: dict[str, Any], groups: Mapping[str, list[str]]) -> Kernel:
    rest = dict(row)
    since, without, needs = (tuple(rest.pop(key, ())) for key in ("since", "without", "needs"))
    attributes = {key: tuple(values) for key, values in rest.pop("attributes", {}).items()}
    whole_bytes = rest.pop("whole_bytes", False)
    types = {key: tuple(groups[value] if isinstance(value, str) else value) for key, value in rest.items()}
    return Kernel(since, types, attributes, without, needs, whole_bytes)


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((resources.files(__package__) / f"{name}.toml").read_text("utf-8"))
