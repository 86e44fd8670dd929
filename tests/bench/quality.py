"""How close quantized artifacts are to the unquantized model: KL divergence, top-1 agreement, perplexity.

Each artifact is compared with a reference artifact of the same source (qtool's target `x64-fp32`) on the same
windows of the same text. Any folder with a `model.onnx` in onnxruntime-genai's layout will do, so that
artifacts of the onnxruntime-genai builder are measured by the same code as qtool's. The graphs are driven
through onnxruntime directly; no runtime of ours is involved.

    qtool build MODEL --target x64-fp32 -o reference
    qtool build MODEL --target x64-int4 -o int4
    python tests/bench/quality.py --reference reference --text TEXT int4 other-builder-int4

For each position of each window: KL(reference || artifact) in nats over the whole vocabulary, whether the two
most probable tokens agree, and the negative log probability of the token that follows in the text (perplexity
is exp of the mean). Each window starts with an empty cache. Memory: the sessions, and the logits of one
window for the reference and one artifact (311 MB each at 512 tokens of a vocabulary of 151,936).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from measure import MEGABYTE, argument_parser, finish, folder_bytes, say
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

LOGITS_ROWS_INPUT = "num_logits"
ROWS_AT_ONCE = 32
ONNX_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
}

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]


class Model:
    """An artifact that gives logits for every position of a window.

    Args:
        folder: holds model.onnx.
        threads: threads of onnxruntime.
        chunk: most tokens in a run; the runs of a window share its KV cache.
    """

    def __init__(self, folder: Path, threads: int, chunk: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # qtool's graph declares one row of logits, and onnxruntime warns whenever it returns more.
        options.log_severity_level = 3
        self.name = folder.name
        self._chunk = chunk
        self.bytes = folder_bytes(folder)
        self.weight_bytes = folder_bytes(folder, "*.onnx*")
        self._session: Any = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._session.disable_fallback()
        # Both builders write this file; not both declare the numbers in the graph.
        decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        self._past_shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._optional = {value.name for value in self._session.get_overridable_initializers()}

    def logits(self, token_ids: Ids) -> Logits:
        """Returns float32 logits (tokens, vocabulary) for a window that starts with an empty cache."""
        cache = {
            name: np.zeros(self._past_shape, ONNX_TYPES[value.type])
            for name, value in self._inputs.items()
            if name.startswith("past_key_values.")
        }
        rows = []
        for start in range(0, len(token_ids), self._chunk):
            chunk = token_ids[start : start + self._chunk]
            rows.append(self._run(chunk, start, cache))
            if len(rows[-1]) != len(chunk):
                raise SystemExit(
                    f"{self.name} returns {len(rows[-1])} rows of logits for {len(chunk)} tokens"
                )
        return np.concatenate(rows) if len(rows) > 1 else rows[0]

    def _run(self, token_ids: Ids, start: int, cache: dict[str, NDArray[Any]]) -> Logits:
        """Reads tokens behind `start` others, and replaces the cache."""
        count = len(token_ids)
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": token_ids[None],
            "attention_mask": np.ones((1, start + count), np.int64),
            **cache,
        }
        if "position_ids" in self._inputs:
            feeds["position_ids"] = np.arange(start, start + count, dtype=np.int64)[None]
        if LOGITS_ROWS_INPUT in self._optional | self._inputs.keys():
            feeds[LOGITS_ROWS_INPUT] = np.array([count], np.int64)
        presents = [name.replace("past_key_values.", "present.") for name in cache]
        logits, *values = self._session.run(["logits", *presents], feeds)
        cache.update(zip(cache, values, strict=True))
        return np.asarray(logits[0], dtype=np.float32)


@dataclass
class Tally:
    """What has been measured of one artifact so far."""

    divergences: list[NDArray[np.float64]] = field(default_factory=list)
    agreements: int = 0
    losses: list[NDArray[np.float64]] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Returns the figures over all positions."""
        divergence = np.concatenate(self.divergences)
        return {
            "kl_mean": float(divergence.mean()),
            # Positions of one text are not independent, so this is a lower bound of the uncertainty.
            "kl_standard_error": float(divergence.std() / np.sqrt(len(divergence))),
            "kl_median": float(np.median(divergence)),
            "kl_p99": float(np.quantile(divergence, 0.99)),
            "top1_agreement": self.agreements / len(divergence),
            "perplexity": perplexity(self.losses),
        }


def perplexity(losses: Sequence[NDArray[np.float64]]) -> float:
    """Returns exp of the mean of all losses."""
    return float(np.exp(np.concatenate(losses).mean()))


def log_softmax_in_place(logits: Logits) -> Logits:
    """Turns rows of logits into log probabilities; the sums are made in float64."""
    for start in range(0, len(logits), ROWS_AT_ONCE):
        rows = logits[start : start + ROWS_AT_ONCE]
        rows -= rows.max(axis=1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return logits


def compare(reference: Logits, other: Logits, targets: Ids, tally: Tally) -> None:
    """Adds one window of log probabilities to an artifact's tally."""
    for start in range(0, len(reference), ROWS_AT_ONCE):
        one, two = reference[start : start + ROWS_AT_ONCE], other[start : start + ROWS_AT_ONCE]
        tally.divergences.append((np.exp(one) * (one - two)).sum(axis=1, dtype=np.float64))
        tally.agreements += int((one.argmax(axis=1) == two.argmax(axis=1)).sum())
    tally.losses.append(-other[np.arange(len(targets)), targets].astype(np.float64))


def read_tokens(folder: Path, text: Path, count: int) -> Ids:
    """Returns the first `count` token ids of a text, in the reference's tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # A token has at most some dozen characters; reading on is waste.
    with text.open(encoding="utf-8") as file:
        ids = tokenizer.encode(file.read(count * 16), add_special_tokens=False).ids
    if len(ids) < count:
        raise SystemExit(f"{text.name} has only {len(ids)} tokens, {count} are needed")
    return np.array(ids[:count], np.int64)


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argument_parser(__doc__)
    parser.add_argument("artifacts", nargs="+", type=Path, help="folders with model.onnx")
    parser.add_argument("--reference", type=Path, required=True, help="the same source, unquantized")
    parser.add_argument(
        "--text", type=Path, required=True, help="UTF-8, such as WikiText-2's validation part"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="predictions to measure (default 4096)")
    parser.add_argument("--window", type=int, default=512, help="tokens that see each other (default 512)")
    parser.add_argument(
        "--chunk", type=int, help="tokens in a run, through the KV cache (default: the window)"
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    # One more than is predicted from: the last position has a following token too.
    ids = read_tokens(arguments.reference, arguments.text, arguments.tokens + 1)
    chunk = arguments.chunk or arguments.window
    reference = Model(arguments.reference, arguments.threads, chunk)
    models = [Model(folder, arguments.threads, chunk) for folder in arguments.artifacts]
    tallies = [Tally() for _ in models]
    reference_losses: list[NDArray[np.float64]] = []
    for start in range(0, arguments.tokens, arguments.window):
        stop = min(start + arguments.window, arguments.tokens)
        window, targets = ids[start:stop], ids[start + 1 : stop + 1]
        expected = log_softmax_in_place(reference.logits(window))
        reference_losses.append(-expected[np.arange(len(targets)), targets].astype(np.float64))
        for model, tally in zip(models, tallies, strict=True):
            compare(expected, log_softmax_in_place(model.logits(window)), targets, tally)
        say(f"{stop} of {arguments.tokens} tokens")
    results = [
        {"artifact": model.name, "bytes": model.bytes, "weight_bytes": model.weight_bytes, **tally.summary()}
        for model, tally in zip(models, tallies, strict=True)
    ]
    source = perplexity(reference_losses)
    report(results, source)
    finish(
        {
            "tokens": arguments.tokens,
            "window": arguments.window,
            "source_perplexity": source,
            "artifacts": results,
        }
    )


def report(results: Sequence[dict[str, Any]], source: float) -> None:
    """Prints the table for people."""
    width = max(len(result["artifact"]) for result in results)
    say(f"perplexity of the source: {source:.2f}")
    say(f"{'artifact':{width}}  graph+weights   KL mean (s.e.)      median     p99   top-1       ppl")
    for result in results:
        say(
            f"{result['artifact']:{width}}  {result['weight_bytes'] / MEGABYTE:10.1f} MB"
            f"  {result['kl_mean']:8.4f} ({result['kl_standard_error']:.4f})  {result['kl_median']:8.4f}"
            f"  {result['kl_p99']:6.3f}  {100 * result['top1_agreement']:5.1f} %  {result['perplexity']:8.2f}"
        )


if __name__ == "__main__":
    main()
