"""Times the choice of a token among 151,936 logits, for options and distributions that once were slow.

    python tests/bench/sampling.py

The last line is JSON: milliseconds by distribution and options, the median of 60 choices.
"""

from __future__ import annotations

import json
import statistics
import time

import numpy as np

from qtool_runtime.logprobs import token_logprobs
from qtool_runtime.sampling import Sampler, SamplingOptions

VOCAB_SIZE, CHOICES = 151_936, 60
OPTIONS: dict[str, dict[str, object]] = {
    "temperature": {},
    "top-p 0.95": {"top_p": 0.95},
    "top-p 0.5": {"top_p": 0.5},
    "top-k 50, top-p 0.8": {"top_k": 50, "top_p": 0.8},
    "top-k 20,000, top-p 0.9": {"top_k": 20_000, "top_p": 0.9},
    "top-k 2,000, top-p 0.9": {"top_k": 2_000, "top_p": 0.9},
    "top-k 40,000": {"top_k": 40_000},
    "min-p 0.05": {"min_p": 0.05},
    "all": {
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.2,
        "logit_bias": dict.fromkeys(range(50), 1.0),
        "banned_ids": list(range(100, 150)),
    },
}


def distributions() -> dict[str, np.ndarray]:
    """Logits of shape (VOCAB_SIZE,) by name."""
    random = np.random.default_rng(0)
    logits = {
        "flat": random.normal(0, 0.01, VOCAB_SIZE),
        "medium": random.normal(0, 2, VOCAB_SIZE),
        "peaked": random.normal(0, 3, VOCAB_SIZE),
        "equal": np.zeros(VOCAB_SIZE),
        "float16": random.normal(0, 0.3, VOCAB_SIZE).astype(np.float16),
    }
    return {name: values.astype(np.float32) for name, values in logits.items()}


def median_milliseconds(action) -> float:
    """Runs `action` CHOICES times."""
    times = []
    for _ in range(CHOICES):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return round(statistics.median(times) * 1e3, 3)


def main() -> None:
    """Prints a line for each distribution, then JSON."""
    report: dict[str, dict[str, float]] = {}
    for name, logits in distributions().items():
        row = report[name] = {}
        for label, options in OPTIONS.items():
            sampler = Sampler(SamplingOptions(temperature=1.0, seed=1, **options), prompt=range(0, 5000, 10))
            row[label] = median_milliseconds(lambda: sampler.choose(logits))  # noqa: B023
        row["20 log-probabilities"] = median_milliseconds(lambda: token_logprobs(logits, 5, 20))  # noqa: B023
        print(f"{name}: " + ", ".join(f"{label} {value:.2f}" for label, value in row.items()))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
