"""True shapes, with random weights: the smallest model of each architecture, and the widths of a 4B model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtool.errors import UnsupportedModelError
from qtool.jobs import plan_jobs
from support.random_weights import random_checkpoint
from support.tiny import tiny_config, write_tiny_checkpoint

# From the models' own configurations.
QWEN2_05B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
}
QWEN3_06B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
}
QWEN3_4B_WIDTHS = QWEN3_06B | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 2,  # memory does not grow with depth: tests/bench/families.py builds all 36
    "num_attention_heads": 32,
}


def write_config(folder: Path, architecture: str, **fields: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config(architecture) | fields))
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(
    ("architecture", "fields", "most_memory"),
    [("qwen2", QWEN2_05B, 600e6), ("qwen3", QWEN3_06B, 600e6), ("qwen3", QWEN3_4B_WIDTHS, 1.5e9)],
    ids=["Qwen2.5-0.5B", "Qwen3-0.6B", "widths of Qwen3-4B"],
)
def test_true_shapes_are_compiled_in_bounded_memory_and_run(
    tmp_path: Path, architecture: str, fields: dict[str, Any], most_memory: float
) -> None:
    folder = write_config(tmp_path / "model", architecture, **fields)
    command = [sys.executable, "-m", "support.build_random", folder, "--output", tmp_path / "artifact"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"\npeak {result['peak_bytes'] / 1e6:.0f} MB, artifact {result['bytes'] / 1e6:.0f} MB")
    assert result["right_logits"]
    assert result["peak_bytes"] < most_memory
    assert result["bytes"] == pytest.approx(result["planned_bytes"], rel=0.02)


OTHERS = {
    "qwen2_moe": "a mixture of experts",
    "qwen2_vl": "a vision-language model",
    "qwen2_5_vl": "a vision-language model",
    "qwen2_5_omni": "a multimodal model",
    "qwen2_audio": "an audio model",
    "qwen3_moe": "a mixture of experts",
    "qwen3_next": "a hybrid of linear and full attention",
    "qwen3_vl": "a vision-language model",
    "qwen3_vl_moe": "a mixture of experts",
    "qwen3_5": "a hybrid of linear and full attention",
    "qwen3_5_text": "a hybrid of linear and full attention",
}


@pytest.mark.parametrize("model_type", OTHERS)
def test_other_families_are_refused_with_what_they_are(tmp_path: Path, model_type: str) -> None:
    folder = write_config(tmp_path / "model", "qwen3", model_type=model_type)
    with pytest.raises(UnsupportedModelError) as caught:
        plan_jobs(folder, ["x64-int4"], plan_only=True)
    assert (
        f"model_type is '{model_type}': this is {OTHERS[model_type]}; supported: qwen2"
        in caught.value.message
    )


class TestRandomWeights:
    """The source of these tests is a checkpoint like any other."""

    @pytest.fixture
    def weights(self, tmp_path: Path) -> Any:
        return random_checkpoint(write_tiny_checkpoint(tmp_path / "tiny").folder).weights

    def test_rows_are_the_same_however_they_are_read(self, weights: Any) -> None:
        weight = weights["model.embed_tokens.weight"]
        whole = weight.read_all()
        np.testing.assert_array_equal(np.concatenate([weight.read(0, 7), weight.read(7, 320)]), whole)
        np.testing.assert_array_equal(weight.read(100, 101)[0], whole[100])

    def test_rows_and_matrices_differ(self, weights: Any) -> None:
        up = weights["model.layers.0.mlp.up_proj.weight"].read_all()
        assert len(np.unique(up, axis=0)) == len(up)
        assert not np.array_equal(up, weights["model.layers.1.mlp.up_proj.weight"].read_all())
        assert up.std() == pytest.approx(64**-0.5, rel=0.05)
