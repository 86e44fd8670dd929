"""Where recipes have an effect; where they have none, they are refused or, among other targets, left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

import qtool_targets
from qtool.errors import OptionError
from qtool.jobs import plan_jobs
from qtool.quantize.recipes import FAST, RECIPES, recipes_for

FLOATS = ["x64-fp32", "cuda-fp16", "directml-fp16"]
INTEGERS = [name for name in qtool_targets.names() if name not in FLOATS]
EIGHT_BITS = ["x64-int8", "arm64-int8"]


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "fast"])
def test_no_recipe_is_for_floats(recipe: str, target: str) -> None:
    with pytest.raises(OptionError, match=f"{recipe} would change nothing for the target {target}") as caught:
        plan_jobs("no/model", [target], recipe=recipe)
    assert caught.value.hint == "Choose one of: fast; or a target of fewer bits."
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("target", EIGHT_BITS)
def test_nothing_of_8_bits_is_calibrated(target: str) -> None:
    with pytest.raises(OptionError, match="balanced would change nothing") as caught:
        plan_jobs("no/model", [target], recipe="balanced")
    assert "Choose one of: fast, best, olive, olive-mixed;" in caught.value.hint


@pytest.mark.parametrize("target", INTEGERS)
def test_what_has_an_effect_is_planned(target: str) -> None:
    for name in {"fast", "best"} | ({"balanced"} if target not in EIGHT_BITS else set()):
        (job,) = plan_jobs(None, [target], recipe=name)
        assert job.recipe == RECIPES[name]


def test_a_single_matrix_of_integers_is_enough() -> None:
    floats = qtool_targets.load("x64-fp32")
    mixed = replace(floats, weights=replace(floats.weights, lm_head_bits=4))
    for name in ("balanced", "best"):
        assert recipes_for(RECIPES[name], [mixed, floats]) == [RECIPES[name], FAST]


def test_among_several_targets_floats_are_built_without_a_budget() -> None:
    jobs = plan_jobs(None, qtool_targets.names(), recipe="best", target_bpw=4.7)
    assert [job.target.name for job in jobs if job.recipe == FAST] == sorted(FLOATS)
    for job in jobs:
        assert (job.budget is None) == (job.target.name in FLOATS)
    (alone,) = plan_jobs(None, ["cuda-fp16"])
    assert alone.plan == next(job.plan for job in jobs if job.target.name == "cuda-fp16")
