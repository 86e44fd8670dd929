"""A real model in float32: the same logits and the same greedy text as transformers.

Both get the weights that qtool reads from the GGUF file. transformers' model is filled from memory; qtool's
artifact takes 2 GB on disk while the tests run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qtool
import qtool_runtime
from qtool.checkpoint import open_checkpoint
from support.raw_session import RawSession, distance

torch = pytest.importorskip("torch", reason="the comparison with transformers needs torch")
transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")

pytestmark = [pytest.mark.real, pytest.mark.slow]

QUESTION = "Write a Python function that returns the n-th Fibonacci number without recursion."
GREEDY_TOKENS = 20


@pytest.fixture(scope="module")
def artifact(real_gguf: Path) -> Iterator[Path]:
    """The artifact in float32; not in pytest's own folders, which it keeps for three runs."""
    with tempfile.TemporaryDirectory() as folder:
        yield qtool.build(real_gguf, target="x64-fp32", output=Path(folder) / "artifact").path


@pytest.fixture(scope="module")
def network(real_gguf: Path) -> Any:
    """transformers' model with the dequantized weights."""
    checkpoint = open_checkpoint(str(real_gguf))
    config = checkpoint.config
    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_key_value_heads,
                max_position_embeddings=config.max_position_embeddings,
                rms_norm_eps=config.rms_norm_eps,
                rope_theta=config.rope_theta,
                tie_word_embeddings=config.tie_word_embeddings,
                attn_implementation="eager",
            )
        )
    model.to_empty(device="cpu")
    weights = {name: torch.from_numpy(weight.read_all()) for name, weight in checkpoint.weights.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    # Frequencies are no part of the weights, and were left empty.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


@pytest.fixture(scope="module")
def tokens(artifact: Path) -> list[int]:
    """A question in the model's chat format."""
    with qtool_runtime.load(artifact, threads=2) as model:
        prompt = model.chat_template.render([{"role": "user", "content": QUESTION}])
        return model.tokenizer.encode(prompt)


def test_logits(artifact: Path, network: Any, tokens: list[int], tolerance: float) -> None:
    assert 30 < len(tokens) < 60
    with torch.no_grad():
        expected = network(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    assert distance(RawSession(artifact).forward(tokens, rows=len(tokens)), expected) < tolerance


def test_greedy_tokens(artifact: Path, network: Any, tokens: list[int]) -> None:
    expected: list[int] = []
    step, cache = tokens, None
    with torch.no_grad():
        for _ in range(GREEDY_TOKENS):
            found = network(torch.tensor([step]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            step, cache = [int(np.argmax(found.logits[0, -1].numpy()))], found.past_key_values
            expected += step
    with qtool_runtime.load(artifact, threads=2) as model:
        stream = model.generate(tokens, max_tokens=GREEDY_TOKENS, ignore_eos=True)
        stream.read()
    assert list(stream.token_ids) == expected
