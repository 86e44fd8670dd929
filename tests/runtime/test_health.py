"""A health check passes a working model, and says what is wrong with graphs that were damaged on purpose."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from qtool_runtime import Model, health, load
from qtool_runtime.errors import ContextLimitError, GenerationError
from qtool_runtime.health import PROMPT, TOKENS, HealthReport, resident_bytes
from qtool_runtime.text import Tokenizer

from .decoder_graphs import TinyDecoder, write_artifact

Broken = Callable[..., HealthReport]


@pytest.fixture
def report_on(tmp_path: Path, tokenizer_json: bytes, engine: str) -> Iterator[Broken]:
    """`report_on(noise=1.0)`: the report on a decoder with that damage."""

    def report_on(**tiny: object) -> HealthReport:
        folder = write_artifact(tmp_path, TinyDecoder(**tiny), {"tokenizer.json": tokenizer_json})  # type: ignore[arg-type]
        with load(folder, threads=1, engine=engine) as model:
            return model.health()

    return report_on


def failures(report: HealthReport) -> list[str]:
    return [check.name for check in report.failures]


def test_a_working_model_is_healthy(model: Model) -> None:
    report = model.health()
    assert report.ok
    values = {check.name: check.value for check in report.checks}
    assert values["tokens"] == 2 * TOKENS
    assert values["repeated_tokens"] == TOKENS
    assert values["non_finite_logits"] == 0
    assert values["logit_spread"] > 1
    assert values["time_to_first_token"] > 0
    assert values["decode_rate"] > 0
    document = report.to_dict()
    assert json.loads(json.dumps(document)) == json.loads(json.dumps(document, allow_nan=False))
    assert document["ok"] is True


def test_a_probe_is_no_answer(model: Model) -> None:
    before = model.metrics.summary()
    model.health()
    after = model.metrics.summary()
    assert (after.answers, after.cache_bytes) == (before.answers, before.cache_bytes)


def test_nan(report_on: Broken, tokenizer: Tokenizer) -> None:
    report = report_on(poison=tokenizer.encode(PROMPT)[2])
    assert failures(report) == ["non_finite_logits", "logit_spread"]
    assert report.failures[0].value == 2 * TOKENS * 300
    assert json.dumps(report.to_dict(), allow_nan=False)


def test_logits_that_say_nothing(report_on: Broken) -> None:
    assert failures(report_on(scale=0.0)) == ["logit_spread"]


def test_another_answer_each_time(report_on: Broken) -> None:
    assert failures(report_on(noise=100.0)) == ["repeated_tokens"]


def test_a_graph_that_fails(report_on: Broken) -> None:
    """Fewer rows in its embedding than the tokenizer has ids."""
    report = report_on(vocab_size=40)
    assert failures(report) == ["tokens"]
    assert re.search(r"(onnxruntime failed on tokens 0 to|the token id \d+ is not the model's)", report.error)
    assert report.checks[0].value == 0


@pytest.mark.parametrize(
    ("threshold", "failed"),
    [
        ({"min_decode_rate": 1e9}, ["decode_rate"]),
        ({"max_time_to_first_token": 1e-9}, ["time_to_first_token"]),
        ({"max_resident_bytes": 1}, ["resident_bytes"]),
        ({"min_decode_rate": 0.01, "max_time_to_first_token": 600, "max_resident_bytes": 1e13}, []),
    ],
)
def test_thresholds(model: Model, threshold: dict[str, float], failed: list[str]) -> None:
    if sys.platform != "linux" and "max_resident_bytes" in threshold:
        failed = ["resident_bytes"]  # it cannot be known
    report = model.health(**threshold)
    assert failures(report) == failed
    assert {check.name: check.threshold for check in report.checks if check.name in failed} == dict(
        zip(failed, threshold.values(), strict=False)
    )


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "5", True])
def test_bad_thresholds(model: Model, value: object) -> None:
    for name in ("min_decode_rate", "max_time_to_first_token", "max_resident_bytes"):
        with pytest.raises(GenerationError, match=f"{name} is .*; valid: None, or a number above 0"):
            model.health(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("context", [2, 5, 12])
def test_a_short_context(artifact: Path, context: int) -> None:
    with load(artifact, threads=1, context=context) as model:
        report = model.health()
    assert report.ok
    assert report.checks[0].value == 2 * min(TOKENS, context - 1)


def test_what_cannot_be_checked(artifact: Path) -> None:
    with load(artifact, threads=1, context=1) as model, pytest.raises(ContextLimitError, match="at least 2"):
        model.health()
    with pytest.raises(GenerationError, match="the model is closed"):
        model.health()


def test_unknown_memory_fails_only_if_it_was_asked_for(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "resident_bytes", lambda: None)  # as on systems other than Linux
    assert model.health().ok
    assert failures(model.health(max_resident_bytes=1e13)) == ["resident_bytes"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_bytes_grow_with_what_is_touched() -> None:
    before = resident_bytes()
    array = np.ones(50 << 20, np.uint8)
    after = resident_bytes()
    assert before is not None
    assert after is not None
    assert after - before > 0.8 * array.nbytes
