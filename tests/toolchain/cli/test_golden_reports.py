"""What `--json` reports hold, number by number, for seeded tiny checkpoints: see tests/golden."""

from __future__ import annotations

import json
from typing import Any

import pytest

import qtool_targets
from support.fixtures import Artifacts, Checkpoints, Golden

from .conftest import Invoke

VARIES = ("sha256", "manifest_sha256")
"""Hashes say nothing to a reader, and move with the versions of numpy and onnx-ir."""


def readable(document: Any) -> Any:
    """Replaces what differs between environments."""
    if isinstance(document, list):
        return [readable(item) for item in document]
    if isinstance(document, dict):
        return {
            key: "(64 hex digits)" if key in VARIES and len(value) == 64 else readable(value)
            for key, value in document.items()
        }
    return document


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_plans(invoke: Invoke, tiny_checkpoint: Checkpoints, golden: Golden, architecture: str) -> None:
    source = tiny_checkpoint(architecture).folder
    command = ["build", source, "--target", "all", "--plan", "--threads", 2, "--json"]
    plans = json.loads(invoke(*command).stdout)
    assert [plan["target"] for plan in plans] == qtool_targets.names()
    golden(f"plan-{architecture}.json", plans)


@pytest.mark.parametrize(
    ("target", "architecture", "tied"),
    [("x64-int4", "qwen2", True), ("x64-int8", "qwen3", False), ("directml-int4", "qwen2", True)],
)
def test_manifests(
    invoke: Invoke, tiny_artifact: Artifacts, golden: Golden, target: str, architecture: str, tied: bool
) -> None:
    folder = tiny_artifact(target, architecture, tied=tied)
    document = json.loads(invoke("inspect", folder, "--json").stdout)
    assert set(document["source"]["files"]) == {"model.safetensors"}
    document["source"]["files"] = {"model.safetensors": "(64 hex digits)"}
    document["tools"] = dict.fromkeys(document["tools"], "(version)")
    golden(f"inspect-{architecture}-{target}.json", readable(document))
