"""What context fits which phone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qtool_targets
from qtool.checkpoint.config_json import config_from_json
from qtool.phones import APP_SHARE, plan_phones
from qtool.plan import make_plan
from qtool_runtime.manifest import MemoryPlan
from qtool_targets import TargetError
from support.tiny import tiny_config

TARGET = qtool_targets.load("android-arm64-int4")
LARGE = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "vocab_size": 100_000,
    "max_position_embeddings": 1 << 20,
}


@pytest.mark.parametrize("phone", [2, 4, 6, 8])
def test_the_plan_for_the_longest_context_fits_and_for_a_longer_one_does_not(phone: int) -> None:
    """Judged by the plan itself, made anew for that context and a budget of what the app gets."""
    config = config_from_json(tiny_config("qwen3", tied=True) | LARGE)
    memory = replace(TARGET.memory, phones_gb=(phone,))
    target = replace(TARGET, memory=memory)
    (found,) = make_plan(config, target, 2048, 1000, 1).phones
    assert 0 < found.context < config.max_position_embeddings
    for tokens, fits in ((found.context, True), (found.context + 512, False)):
        peak = make_plan(config, target, tokens, 1000, 1).device.peak
        assert (peak <= found.app_bytes) is fits, tokens


@given(
    weights=st.integers(0, 8 << 30),
    per_token=st.integers(1, 1 << 20),
    context=st.integers(1, 1 << 16),
    remembers=st.booleans(),
    most=st.integers(1, 1 << 20),
)
def test_any_model_stays_within_what_the_app_gets(
    weights: int, per_token: int, context: int, remembers: bool, most: int
) -> None:
    budget = 2_500_000_000
    plan = MemoryPlan(weights, context * per_token, int(remembers), 10_000_000, 90_000_000, 0, budget)
    for phone in plan_phones((4, 6, 8), plan, context, most):
        remembered = min(phone.context * per_token, budget // 16) if remembers else 0
        peak = weights + 100_000_000 + phone.context * per_token + remembered
        assert phone.context <= most
        assert phone.context == 0 or peak <= phone.app_bytes == phone.phone_gb * 2**30 * APP_SHARE


def test_only_targets_that_name_phones_plan_for_them() -> None:
    config = config_from_json(tiny_config("qwen2", tied=True))
    named = {
        name for name in qtool_targets.names() if make_plan(config, qtool_targets.load(name), 64, 1, 1).phones
    }
    assert named == {"android-arm64-int4"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('["4"]', "phones_gb must be a list of whole numbers"),
        ("[true]", "phones_gb must be a list of whole numbers"),
        ("[0]", "memory.phones_gb has 0; valid: 1 to 64"),
        ("[4096]", "memory.phones_gb has 4096; valid: 1 to 64"),
        ("4", "phones_gb = 4 is not of the type"),
    ],
)
def test_sizes_that_no_phone_has_are_refused(value: str, message: str, tmp_path: Path) -> None:
    from importlib import resources

    text = (resources.files(qtool_targets) / "android-arm64-int4.toml").read_text("utf-8")
    (tmp_path / "mine.toml").write_text(text.replace("phones_gb = [4, 6, 8]", f"phones_gb = {value}"))
    with pytest.raises(TargetError, match=message.replace("[", r"\[")):
        qtool_targets.load(tmp_path / "mine.toml")
