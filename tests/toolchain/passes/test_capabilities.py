"""What a provider cannot run is refused before anything is built, with the reason."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import qtool
import qtool_targets
from qtool.passes import capabilities, capabilities_for, passes_for
from qtool_targets import Target, TargetError
from qtool_targets.schema import PROVIDERS
from support.fixtures import Checkpoints


def changed(name: str, **weights: Any) -> Target:
    target = qtool_targets.load(name)
    return replace(target, weights=replace(target.weights, **weights))


def test_every_provider_of_the_targets_has_a_record() -> None:
    for provider in PROVIDERS:
        target = qtool_targets.load("x64-int4")
        execution = replace(target.execution, provider=provider)
        weights = replace(target.weights, embedding_bits=32)
        assert capabilities_for(replace(target, execution=execution, weights=weights)).provider == provider


def test_directml_has_no_quantized_embedding(tmp_path: Path, tiny_checkpoint: Checkpoints) -> None:
    target = changed("directml-int4", embedding_bits=None)
    expected = r"embedding_bits = 4, but the provider directml has no kernel"
    with pytest.raises(TargetError, match=expected) as caught:
        passes_for(target, {}, {})
    assert "embedding_bits to 16" in caught.value.hint
    with pytest.raises(TargetError, match=expected):
        qtool.build(tiny_checkpoint().folder, target=target, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "weights",
    [
        {"bits": 4},
        {"bits": 32, "lm_head_bits": 4},
        {"bits": 32, "embedding_bits": 8},
    ],
    ids=["all", "head only", "embedding only"],
)
def test_zero_points_are_refused_where_the_provider_takes_none(
    monkeypatch: pytest.MonkeyPatch, weights: dict[str, int]
) -> None:
    """No provider lacks them today; the record says so, and this test lets one lack them."""
    records = dict(capabilities._CAPABILITIES)
    records["cpu"] = replace(records["cpu"], supports_zero_points=False)
    monkeypatch.setattr(capabilities, "_CAPABILITIES", records)
    with pytest.raises(TargetError, match=r"symmetric = false, but the provider cpu takes no zero points"):
        capabilities_for(changed("x64-int4", **{"symmetric": False, **weights}))
    capabilities_for(changed("x64-int4", **{**weights, "symmetric": True}))


@pytest.mark.parametrize("provider", ["cuda", "directml"])
def test_absent_zero_points_are_refused_where_the_kernel_takes_them_for_zero(
    tmp_path: Path, tiny_checkpoint: Checkpoints, provider: str
) -> None:
    target = changed(f"{provider}-int4", symmetric=True)
    with pytest.raises(TargetError, match=f"provider {provider} takes absent zero points for 0") as caught:
        qtool.build(tiny_checkpoint().folder, target=target, output=tmp_path / "out")
    assert "symmetric to false" in caught.value.hint
    capabilities_for(changed(f"{provider}-fp16", symmetric=True))  # no integers, no zero points


def test_no_record_says_something_that_nothing_reads() -> None:
    folder = Path(qtool.__file__).parent
    source = "".join(path.read_text("utf-8") for path in folder.rglob("*.py"))
    for field in fields(capabilities.Capabilities):
        assert f".{field.name}" in source, f"no pass reads {field.name}"
