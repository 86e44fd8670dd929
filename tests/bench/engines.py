"""One inference engine in a process of its own, driven by lines of JSON on stdin (see decode.py).

    python engines.py ENGINE MODEL THREADS

ENGINE is "qtool", "genai" or "llama". MODEL is an artifact, or a GGUF file for llama. THREADS 0 leaves the
choice to the engine. The interpreter needs that engine's package, and numpy.

The first line that it prints says how long importing and loading took and what memory they left behind. Then
it answers requests. {"prompt": 128} reads that many token ids, the same for every engine, into an empty cache
and generates the first token; {"tokens": 16} goes on from there, greedily. Both are answered with
{"rate": tokens per second}. {"memory": true} is answered with the memory in use and its peak.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from measure import memory_status

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

CONTEXT = 1024


class Engine(Protocol):
    """A loaded model."""

    def start(self, prompt: list[int]) -> float:
        """Reads a prompt into an empty cache, generates the first token, and returns the seconds."""

    def advance(self, tokens: int) -> int:
        """Generates at least that many further tokens, and returns how many."""


def prompt_ids(count: int) -> list[int]:
    """Returns the same ordinary token ids in every process, without a tokenizer."""
    return [1000 + (7919 * index) % 20011 for index in range(count)]


class QtoolEngine:
    """qtool_runtime, as an application uses it: it also turns the tokens into text, which the others do not."""

    def __init__(self, model: Path, threads: int) -> None:
        import qtool_runtime

        self._model = qtool_runtime.load(model, threads=threads or None)
        self._stream: Any = None

    def start(self, prompt: list[int]) -> float:
        self._stream = self._model.generate(prompt, max_tokens=CONTEXT - len(prompt), ignore_eos=True)
        next(self._stream)
        return float(self._stream.stats.prefill_seconds)

    def advance(self, tokens: int) -> int:
        found = self._stream.stats.token_ids
        before = len(found)
        while len(found) < before + tokens:
            next(self._stream)  # a piece of text, of one token or more
        return len(found) - before


class GenaiEngine:
    """onnxruntime-genai's Generator. The thread count is that of the artifact's genai_config.json."""

    def __init__(self, model: Path, threads: int) -> None:
        import onnxruntime_genai

        del threads  # decode.py writes it into a copy of the configuration
        self._package: Any = onnxruntime_genai
        self._model = onnxruntime_genai.Model(str(model))
        self._tokenizer = onnxruntime_genai.Tokenizer(self._model)  # the other engines load theirs too
        self._generator: Any = None

    def start(self, prompt: list[int]) -> float:
        import numpy as np

        options = self._package.GeneratorParams(self._model)
        # Neither random, nor shorter than asked for, nor with a penalty that would have to be computed.
        options.set_search_options(
            max_length=CONTEXT, min_length=CONTEXT, do_sample=False, repetition_penalty=1.0, top_k=1
        )
        self._generator = self._package.Generator(self._model, options)
        started = time.perf_counter()
        self._generator.append_tokens(np.array([prompt], np.int32))
        self._generator.generate_next_token()
        return time.perf_counter() - started

    def advance(self, tokens: int) -> int:
        for _ in range(tokens):
            self._generator.generate_next_token()
        return tokens


class LlamaEngine:
    """llama.cpp through the low-level interface of llama-cpp-python, so that no Python per token is counted
    but the arg-max."""

    def __init__(self, model: Path, threads: int) -> None:
        import llama_cpp

        self._package: Any = llama_cpp
        count = threads or os.cpu_count() or 1
        self._llama = llama_cpp.Llama(
            str(model), n_ctx=CONTEXT, n_batch=512, n_threads=count, n_threads_batch=count, verbose=False
        )
        self._context: Any = self._llama._ctx.ctx
        self._vocabulary = self._llama.n_vocab()
        self._token = 0

    def start(self, prompt: list[int]) -> float:
        self._package.llama_memory_clear(self._package.llama_get_memory(self._context), True)
        started = time.perf_counter()
        self._forward(prompt)
        return time.perf_counter() - started

    def advance(self, tokens: int) -> int:
        for _ in range(tokens):
            self._forward([self._token])
        return tokens

    def _forward(self, ids: list[int]) -> None:
        import numpy as np

        array = (self._package.llama_token * len(ids))(*ids)
        code = self._package.llama_decode(self._context, self._package.llama_batch_get_one(array, len(ids)))
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        logits = self._package.llama_get_logits_ith(self._context, -1)
        self._token = int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


ENGINES: dict[str, tuple[str, type[QtoolEngine] | type[GenaiEngine] | type[LlamaEngine]]] = {
    "qtool": ("qtool_runtime", QtoolEngine),
    "genai": ("onnxruntime_genai", GenaiEngine),
    "llama": ("llama_cpp", LlamaEngine),
}


def main() -> None:
    """Loads the model named on the command line, and answers requests until stdin ends."""
    name, model, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    package, engine_class = ENGINES[name]
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    started = time.perf_counter()
    __import__(package)
    imported = time.perf_counter()
    engine: Engine = engine_class(model, threads)
    loaded = time.perf_counter()
    start = {"import": imported - started, "load": loaded - imported, "memory": memory_status()}
    print(json.dumps(start), file=answers)
    for line in sys.stdin:
        print(json.dumps(respond(engine, json.loads(line))), file=answers)


def respond(engine: Engine, request: dict[str, int]) -> dict[str, Any]:
    """Returns the answer to one request."""
    if "memory" in request:
        return dict(memory_status())
    if "prompt" in request:
        return {"rate": request["prompt"] / engine.start(prompt_ids(request["prompt"]))}
    started = time.perf_counter()
    tokens = engine.advance(request["tokens"])
    return {"rate": tokens / (time.perf_counter() - started)}


if __name__ == "__main__":
    main()
