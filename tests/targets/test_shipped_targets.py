"""The profiles that ship: each loads, is written in one canonical form, and makes sense for its provider."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from importlib import resources
from typing import Any

import pytest

import qtool_targets
from qtool.passes import capabilities_for
from qtool_targets import Execution, Gates, Memory, Precision, Weights

NAMES = qtool_targets.names()
TABLES = {
    "execution": Execution,
    "weights": Weights,
    "precision": Precision,
    "memory": Memory,
    "gates": Gates,
}


def text_of(name: str) -> str:
    return (resources.files(qtool_targets) / f"{name}.toml").read_text("utf-8")


def canonical(document: dict[str, Any]) -> str:
    """Top-level keys, then the tables, each in the order of its record; one blank line between tables."""
    top = ["name", "description", "legacy", "tested_on", "checked"]
    blocks = [[f"{key} = {literal(document[key])}" for key in top if key in document]]
    for table, record in TABLES.items():
        if table not in document:
            continue  # gates may be absent
        keys = [field.name for field in fields(record) if field.name in document[table]]
        blocks.append([f"[{table}]"] + [f"{key} = {literal(document[table][key])}" for key in keys])
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


def literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        items = [literal(item) for item in value]
        one_line = f"[{', '.join(items)}]"
        return (
            one_line
            if len(items) < 2 or isinstance(value[0], int)
            else "[\n" + "".join(f"    {item},\n" for item in items) + "]"
        )
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_every_promised_target_is_there() -> None:
    promised = {
        "x64-int4", "x64-int8", "arm64-int4", "arm64-int8", "android-arm64-int4",
        "cuda-int4", "cuda-fp16", "directml-int4", "directml-fp16", "web-int4",
    }  # fmt: skip
    assert promised <= set(NAMES)
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_is_called_like_its_file(name: str) -> None:
    assert qtool_targets.load(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_is_in_canonical_form(name: str) -> None:
    assert text_of(name) == canonical(tomllib.loads(text_of(name)))


def test_the_canonical_form_has_gates_last() -> None:
    document = tomllib.loads(text_of("x64-int4")) | {"gates": {"max_size_mb": 400, "max_kl": 0.1}}
    assert canonical(document).endswith("\n\n[gates]\nmax_kl = 0.1\nmax_size_mb = 400\n")


@pytest.mark.parametrize("name", NAMES)
def test_its_provider_can_run_it(name: str) -> None:
    target = qtool_targets.load(name)
    assert capabilities_for(target).provider == target.execution.provider


@pytest.mark.parametrize("name", NAMES)
def test_name_says_what_the_weights_are(name: str) -> None:
    target = qtool_targets.load(name)
    kind = {4: "int4", 8: "int8", 16: "fp16", 32: "fp32"}[target.weights.bits]
    assert name.endswith(f"-{kind}")


@pytest.mark.parametrize("name", NAMES)
def test_says_what_has_executed_it_or_what_else_is_known(name: str) -> None:
    target = qtool_targets.load(name)
    assert target.tested_on or target.checked or target.execution.provider == "cpu"
    if target.precision.activations == "float16" and not target.tested_on:
        assert "not executed on a GPU" in target.checked


@pytest.mark.parametrize("name", NAMES)
def test_only_directml_is_legacy(name: str) -> None:
    target = qtool_targets.load(name)
    assert target.legacy is (target.execution.provider == "directml")


@pytest.mark.parametrize("name", NAMES)
def test_to_dict_reads_back_as_the_same_target(name: str) -> None:
    target = qtool_targets.load(name)
    document = {key: value for key, value in target.to_dict().items() if not isinstance(value, dict)}
    for key, table in target.to_dict().items():
        if isinstance(table, dict):  # TOML has no null: what is None was absent
            document[key] = {name: value for name, value in table.items() if value is not None}
    assert qtool_targets.schema.parse(document, "again") == target
