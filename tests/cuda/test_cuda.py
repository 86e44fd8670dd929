"""Artifacts for CUDA on the GPU: every heavy node runs there, and the numbers are those of the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import qtool_runtime
from qtool.evaluate.text import evaluation_tokens, nano_text
from qtool_runtime.compatibility import PROVIDERS
from qtool_runtime.text import Tokenizer
from support.fixtures import Artifacts, Checkpoints
from support.half import mean_divergence
from support.tolerances import TOLERANCES

pytestmark = pytest.mark.cuda

INDICES = {"Shape", "Gather", "Cast", "ReduceSum", "Sub", "Neg", "Add", "Slice"}
"""Operators that only compute lengths and positions, on the CPU beside the GPU."""
BENCHMARK = Path(__file__).parents[1] / "bench" / "cuda.py"


def logits(artifact: Path, provider: str, ids: np.ndarray, pieces: list[int]) -> np.ndarray:
    """Logits of all tokens, read in pieces of these sizes."""
    with qtool_runtime.load(artifact, provider=provider, threads=2) as model:
        session = model.new_session()
        found, start = [], 0
        for size in pieces:
            found.append(session.forward(ids[start : start + size], rows=size).copy())
            start += size
    return np.concatenate(found)


def test_predictions_are_those_of_the_cpu(nano: Path, provider: str) -> None:
    ids = evaluation_tokens(nano_text(), Tokenizer.from_file(nano / "tokenizer.json"), 128)[:128]
    expected = logits(nano, "cpu", ids, [128])
    found = logits(nano, provider, ids, [128])
    assert mean_divergence(expected, found) < TOLERANCES["float16_kl"]["device"]
    assert (expected.argmax(-1) == found.argmax(-1)).mean() > 0.97


def test_cached_decode_equals_one_pass(nano: Path, provider: str) -> None:
    ids = evaluation_tokens(nano_text(), Tokenizer.from_file(nano / "tokenizer.json"), 64)[:64]
    whole = logits(nano, provider, ids, [64])
    pieces = logits(nano, provider, ids, [40, *[1] * 16, 8])
    assert mean_divergence(whole, pieces) < TOLERANCES["float16_kl"]["device"]


def test_a_chat_goes_on_over_turns(nano: Path, provider: str) -> None:
    messages = [{"role": "user", "content": "Turn on the kitchen light"}]
    answers = []
    for where in ("cpu", provider):
        with qtool_runtime.load(nano, provider=where) as model:
            stream = model.chat(messages, temperature=0, max_tokens=60)
            text = stream.read()
            turn = [*messages, stream.message(), {"role": "user", "content": "What can you do?"}]
            answers.append((text, model.chat(turn, temperature=0, max_tokens=60).read()))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_only_indices_are_computed_on_the_cpu(
    tiny_artifact: Artifacts, provider: str, target: str, architecture: str, tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    options.log_severity_level = 3
    name = PROVIDERS[provider].onnxruntime_name
    folder = tiny_artifact(target, architecture)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=[name])
    cache = json.loads((folder / "manifest.json").read_text())["kv_cache"]
    empty = np.zeros((1, cache["num_key_value_heads"], 0, cache["head_dim"]), np.float16)
    past = {value.name: empty for value in session.get_inputs() if value.name.startswith("past")}
    session.run(
        None, {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), np.int64), **past}
    )
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event["args"] for event in events if event.get("cat") == "Node" and "provider" in event["args"]]
    attention = [node for node in nodes if node["op_name"] == "GroupQueryAttention"]
    assert {node["provider"] for node in attention} == {name}
    elsewhere = {node["op_name"] for node in nodes if node["provider"] != name}
    assert elsewhere <= INDICES | {"MemcpyToHost", "MemcpyFromHost"}


def test_the_benchmark_compares_whatever_is_installed(
    tiny_checkpoint: Checkpoints, tiny_artifact: Artifacts, provider: str, target: str
) -> None:
    """PyTorch (eager, compiled) is looked for in the interpreter QTOOL_TORCH_PYTHON."""
    command = [sys.executable, BENCHMARK, tiny_artifact(target), "--provider", provider]
    options = ["--prompt", "20", "--tokens", "8", "--rounds", "1", "--checkpoint", tiny_checkpoint().folder]
    torch = os.environ.get("QTOOL_TORCH_PYTHON")
    options += ["--torch-python", torch] if torch else []
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print("\n" + done.stderr)
    engines = json.loads(done.stdout.splitlines()[-1])["engines"]
    assert engines["qtool"]["decode"] > 0
