"""Builds from checkpoints that are quantized already: their integers reach the artifact as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import qtool
import qtool_runtime
from qtool.cli import cli
from qtool.errors import QtoolError, SourceError
from qtool.evaluate.weights import artifact_weights
from qtool.jobs import Evaluation, plan_jobs
from qtool.nano import model_path
from qtool.pipeline import Artifact, run_jobs
from qtool.quantize import rtn
from qtool.quantize.schemes import Scheme
from support.quantized import QuantizedCheckpoint, Style, write_quantized_checkpoint

GPTQ = Style("gptq")
STYLES = [
    GPTQ,
    Style("gptq_v2", group_size=128, symmetric=False),
    Style("gptq", bits=8, group_size=64),
    Style("awq", symmetric=False),
    Style("olive", group_size=16, symmetric=False),
]
Nano = Callable[[Style], QuantizedCheckpoint]
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Nano:
    """`nano(style)`: the embedded model in that form; read-only."""

    @cache
    def quantized(style: Style) -> QuantizedCheckpoint:
        folder = tmp_path_factory.mktemp("quantized") / "nano"
        return write_quantized_checkpoint(folder, model_path(), style)

    return quantized


def matrices(artifact: Artifact) -> dict[str, np.ndarray]:
    weights = artifact_weights(artifact.path, artifact.manifest)
    return {name: weight.read_all() for name, weight in weights.items()}


@pytest.mark.parametrize("style", STYLES, ids=lambda style: f"{style.method}-{style.bits}-{style.group_size}")
def test_integers_are_taken_over_and_the_rest_is_the_targets(
    style: Style, nano: Nano, tmp_path: Path
) -> None:
    source = nano(style)
    artifact = qtool.build(source.folder, target="x64-int4", output=tmp_path / "out")
    found = matrices(artifact)
    for name, values in source.tensors.items():
        if name.endswith("_proj.weight"):
            np.testing.assert_array_equal(found[name], values)
    scheme = Scheme(4, 32)  # of the target's embedding and LM head, which are one tensor
    expected = rtn.dequantize(rtn.quantize(source.tensors[EMBEDDING], scheme), scheme)
    np.testing.assert_array_equal(found[EMBEDDING], expected)
    kept = style.bits, style.group_size, style.symmetric, f"source:{style.method.removesuffix('_v2')}"
    groups = artifact.manifest.quantization
    assert [(group.group, len(group.tensors)) for group in groups] == [
        ("attention", 16),
        ("mlp", 12),
        ("embedding", 1),
    ]
    for group in groups[:2]:
        assert (group.bits, group.group_size, group.symmetric, group.algorithm) == kept
    with qtool_runtime.load(artifact.path) as model:
        question = [{"role": "user", "content": "What is 7 + 5?"}]
        assert model.chat(question, temperature=0, max_tokens=40).read() == "7 + 5 = 12."


def test_a_target_with_more_bits_takes_them_over_too(nano: Nano, tmp_path: Path) -> None:
    """Eight bits for what four stand for would only be larger."""
    jobs = plan_jobs(nano(GPTQ).folder, ["x64-int8", "x64-int4"], output=tmp_path)
    for job, artifact in zip(jobs, run_jobs(jobs), strict=True):
        bits = {group.group: group.bits for group in artifact.manifest.quantization}
        assert bits == {"attention": 4, "mlp": 4, "embedding": 8 if job.target.name == "x64-int8" else 4}


def test_a_target_in_floats_holds_what_the_integers_stand_for(nano: Nano, tmp_path: Path) -> None:
    source = nano(GPTQ)
    artifact = qtool.build(source.folder, target="x64-fp32", output=tmp_path / "out")
    assert {group.bits for group in artifact.manifest.quantization} == {32}
    found = matrices(artifact)
    for name in found:
        np.testing.assert_array_equal(found[name], source.tensors[name])


@pytest.mark.parametrize("target", ["cuda-int4", "directml-int4"])
def test_zero_points_are_written_out_where_the_kernels_do_not_imply_them(
    target: str, nano: Nano, tmp_path: Path
) -> None:
    source = nano(GPTQ)
    (job,) = plan_jobs(source.folder, [target], output=tmp_path / "out")
    (artifact,) = run_jobs([job])
    assert [group.symmetric for group in artifact.manifest.quantization[:2]] == [False, False]
    name = "model.layers.1.self_attn.k_proj.weight"
    np.testing.assert_array_equal(matrices(artifact)[name], source.tensors[name])
    assert job.plan.artifact == pytest.approx(artifact.size, rel=0.02)


def test_scales_keep_their_type_on_a_device_that_computes_in_it(nano: Nano, tmp_path: Path) -> None:
    source = nano(GPTQ)
    artifact = qtool.build(source.folder, target="cuda-int4", output=tmp_path / "out")
    name = "model.layers.2.mlp.down_proj.weight"
    np.testing.assert_array_equal(matrices(artifact)[name], source.tensors[name])


def test_scales_that_are_not_exact_on_the_device_are_refused(nano: Nano, tmp_path: Path) -> None:
    source = nano(Style("gptq_v2", symmetric=False, scale_type="float32"))
    with pytest.raises(SourceError, match="not exact in FLOAT16") as caught:
        qtool.build(source.folder, target="cuda-int4", output=tmp_path / "out")
    assert "float32 activations" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("style", [GPTQ, Style("gptq", bits=8, group_size=64)], ids=["int4", "int8"])
def test_the_plan_is_that_of_the_sources_own_schemes(style: Style, nano: Nano, tmp_path: Path) -> None:
    (job,) = plan_jobs(nano(style).folder, ["x64-int4"], output=tmp_path / "out")
    (artifact,) = run_jobs([job])
    assert job.plan.artifact == pytest.approx(artifact.size, rel=0.02)
    assert job.plan.device.weights == pytest.approx(artifact.manifest.memory.weights, rel=0.02)


def test_a_plan_needs_the_configuration_alone(nano: Nano, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((nano(Style("gptq", bits=8, group_size=64)).folder / name).read_bytes())
    (bare,) = plan_jobs(folder, ["x64-int4"], plan_only=True)
    (whole,) = plan_jobs(nano(Style("gptq", bits=8, group_size=64)).folder, ["x64-int4"])
    assert bare.plan.artifact == pytest.approx(whole.plan.artifact, rel=0.01)


@pytest.mark.parametrize("recipe", ["balanced", "best"])
def test_quantizing_again_is_refused(recipe: str, nano: Nano, tmp_path: Path) -> None:
    with pytest.raises(QtoolError, match="quantized already \\(gptq\\)") as caught:
        qtool.build(nano(GPTQ).folder, target="x64-int4", recipe=recipe, output=tmp_path / "out")
    assert "original model" in caught.value.hint


def test_its_reference_is_what_the_integers_stand_for(nano: Nano, tmp_path: Path) -> None:
    """So what `--evaluate` measures is what the build adds: the embedding's rounding, and the kernels'."""
    artifact = qtool.build(
        nano(GPTQ).folder,
        target="x64-int8",
        output=tmp_path / "out",
        evaluation=Evaluation(tokens=256),
    )
    assert artifact.manifest.quality is not None
    assert artifact.manifest.quality.kl_mean < 0.01


def test_inspect_says_that_they_were_taken_over(nano: Nano, tmp_path: Path) -> None:
    qtool.build(nano(GPTQ).folder, target="x64-int4", output=tmp_path / "out")
    result = CliRunner().invoke(cli, ["inspect", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert re.search(r"mlp +4 +32 +symmetric +gptq, taken over from the source +12", result.stdout)
