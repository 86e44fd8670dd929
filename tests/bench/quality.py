"""How close artifacts are to the unquantized model, those of other builders too.

`qtool eval` measures artifacts of qtool through its runtime. This script has the same formulas and the same
windows for any folder with a `model.onnx` in onnxruntime-genai's layout, so that artifacts of the
onnxruntime-genai builder are measured by the same code. Graphs are driven through onnxruntime directly, and
no runtime of ours is involved: the two ways agree, or one of them is wrong.

    qtool build MODEL --target x64-fp32 -o reference
    qtool build MODEL --target x64-int4 -o int4
    python tests/bench/quality.py --reference reference --text TEXT int4 other-builder-int4

Memory: the sessions, and the logits of `--chunk` tokens for each model (311 MB at 512 tokens of a vocabulary
of 151,936).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import MEGABYTE, argument_parser, finish, folder_bytes, say
from numpy.typing import NDArray

from qtool.evaluate.divergence import Distribution, Ids, Logits, Tally
from qtool.evaluate.measure import WINDOW, measure
from qtool.evaluate.text import evaluation_tokens
from qtool.plain_text import read_plain_text
from qtool_runtime.text import Tokenizer

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

LOGITS_ROWS_INPUT = "num_logits"
ONNX_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
}


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

    def read(self, window: Ids, rows: int) -> Iterator[Logits]:
        """Yields logits of a window, a chunk at a time; see `qtool.evaluate.measure.Reader`.

        The chunks are this script's own: each is one run.
        """
        cache = {
            name: np.zeros(self._past_shape, ONNX_TYPES[value.type])
            for name, value in self._inputs.items()
            if name.startswith("past_key_values.")
        }
        for start in range(0, len(window), self._chunk):
            chunk = window[start : start + self._chunk]
            logits = self._run(chunk, start, cache)
            if len(logits) != len(chunk):
                raise SystemExit(f"{self.name} returns {len(logits)} rows of logits for {len(chunk)} tokens")
            yield logits

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


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argument_parser(__doc__)
    parser.add_argument("artifacts", nargs="+", type=Path, help="folders with model.onnx")
    parser.add_argument("--reference", type=Path, required=True, help="the same source, unquantized")
    parser.add_argument(
        "--text", type=Path, required=True, help="UTF-8, such as WikiText-2's validation part"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="predictions to measure (default 4096)")
    parser.add_argument("--window", type=int, default=WINDOW, help="tokens that see each other (default 512)")
    parser.add_argument(
        "--chunk", type=int, help="tokens in a run, through the KV cache (default: the window)"
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(arguments.reference / "tokenizer.json")
    ids = evaluation_tokens(read_plain_text(arguments.text), tokenizer, arguments.tokens)
    chunk = arguments.chunk or arguments.window
    reference = Model(arguments.reference, arguments.threads, chunk)
    models = [Model(folder, arguments.threads, chunk) for folder in arguments.artifacts]
    source, *tallies = measure(
        reference,
        models,
        ids,
        vocab_size=json.loads((arguments.reference / "genai_config.json").read_text())["model"]["vocab_size"],
        window=arguments.window,
        progress=lambda done, total: say(f"{done} of {total} tokens"),
    )
    results = [figures(model, tally) for model, tally in zip(models, tallies, strict=True)]
    report(results, source.perplexity)
    finish(
        {
            "tokens": arguments.tokens,
            "window": arguments.window,
            "source_perplexity": source.perplexity,
            "artifacts": results,
        }
    )


def figures(model: Model, tally: Tally) -> dict[str, Any]:
    """Returns what was measured of one artifact."""
    kl = Distribution.of(tally.divergences)
    return {
        "artifact": model.name,
        "bytes": model.bytes,
        "weight_bytes": model.weight_bytes,
        "kl_mean": kl.mean,
        "kl_standard_error": kl.standard_error,
        "kl_median": kl.median,
        "kl_p99": kl.p99,
        "top1_agreement": tally.agreement,
        "perplexity": tally.perplexity,
    }


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
