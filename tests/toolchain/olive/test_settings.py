"""The recipes of Olive as far as they go without Olive: plans, refusals, and the model that it is given."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import qtool
from qtool.checkpoint import open_checkpoint
from qtool.checkpoint.folder_writer import write_folder
from qtool.errors import MissingExtraError, QtoolError
from qtool.jobs import plan_jobs
from qtool.nano import model_path
from support.fixtures import Checkpoints


def is_installed() -> bool:
    try:
        return bool(version("olive-ai"))
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(is_installed(), reason="Olive is installed")
def test_without_olive_nothing_begins(tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(MissingExtraError, match="'olive-ai'") as caught:
        qtool.build(
            target="x64-int4",
            recipe="olive",
            output=tmp_path / "out",
            progress=lambda stage, done, total: stages.append(stage),
        )
    assert "qtool-edge[olive]" in caught.value.hint
    assert (caught.value.exit_code, stages, list(tmp_path.iterdir())) == (10, [], [])


def test_one_target_at_a_time() -> None:
    with pytest.raises(QtoolError, match="one target at a time, not for 2"):
        plan_jobs(None, ["x64-int4", "arm64-int4"], recipe="olive")


def test_plans_need_no_olive() -> None:
    sizes = {}
    for recipe in ("fast", "olive", "olive-mixed"):
        (job,) = plan_jobs(None, ["x64-int4"], recipe=recipe, plan_only=True)
        sizes[recipe] = job.plan.artifact
        assert job.plan.disk >= job.plan.artifact
    # Two layers of four: matrices of 8 bits for queries, keys, values and the way down.
    more = 2 * (256 * (128 + 2 * 64) + 256 * 384) // 2
    assert sizes["olive"] == sizes["fast"]
    assert sizes["olive-mixed"] - sizes["olive"] == pytest.approx(more, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_model_that_olive_is_given(dtype: str, tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny = tiny_checkpoint("qwen3", tied=False)
    write_folder(open_checkpoint(str(tiny.folder)), tmp_path, dtype)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == tiny.tensors.keys()
    for name, values in tiny.tensors.items():
        np.testing.assert_array_equal(written[name], values.astype(dtype))
    config = json.loads((tmp_path / "config.json").read_text())
    ours = {key: value for key, value in tiny.config.items() if key in config and key != "torch_dtype"}
    assert {key: config[key] for key in ours} | {"eos_token_id": ours["eos_token_id"]} == ours


def test_a_folder_that_was_written_can_be_opened(tmp_path: Path) -> None:
    source = open_checkpoint(str(model_path()))
    write_folder(source, tmp_path, "float32")
    for name, content in source.tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    assert open_checkpoint(str(tmp_path)).config == source.config
