"""One inference engine in a process of its own, driven by lines of JSON on stdin (see decode.py).

    python engines.py ENGINE MODEL THREADS

ENGINE is "qtool", "genai" or "llama". MODEL is an artifact, or a GGUF file for llama. THREADS 0 leaves the
choice to the engine. The interpreter needs that engine's package, and numpy.

The first line that it prints says how long importing and loading took and what memory they left behind. Then
each request {"prompt": 128, "tokens": 64} is answered with {"prefill": seconds, "decode": seconds}: a prompt
of that many token ids, the same for every engine, the first token from it, and as many further tokens,
greedily. {"memory": true} is answered with the memory in use and its peak.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from measure import memory_status

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

CONTEXT = 1024


class Timing(NamedTuple):
    """Seconds for the prompt with the first token, and for all tokens after that."""

    prefill: float
    decode: float


class Engine(Protocol):
    """A loaded model."""

    def run(self, prompt: list[int], tokens: int) -> Timing:
        """Reads a prompt into an empty cache, and generates the first token and `tokens` more."""


def prompt_ids(count: int) -> list[int]:
    """Returns the same ordinary token ids in every process, without a tokenizer."""
    return [1000 + (7919 * index) % 20011 for index in range(count)]


class QtoolEngine:
    """qtool_runtime. Its time includes turning the tokens into text, that of the others does not."""

    def __init__(self, model: Path, threads: int) -> None:
        import qtool_runtime

        self._model = qtool_runtime.load(model, threads=threads or None)

    def run(self, prompt: list[int], tokens: int) -> Timing:
        started = time.perf_counter()
        stream = self._model.generate(prompt, max_tokens=tokens + 1, ignore_eos=True)
        stream.read()
        total = time.perf_counter() - started
        if len(stream.token_ids) != tokens + 1:
            raise RuntimeError(f"{len(stream.token_ids)} tokens came instead of {tokens + 1}")
        return Timing(stream.stats.prefill_seconds, total - stream.stats.prefill_seconds)


class GenaiEngine:
    """onnxruntime-genai's Generator. The thread count is that of the artifact's genai_config.json."""

    def __init__(self, model: Path, threads: int) -> None:
        import onnxruntime_genai

        del threads  # decode.py writes it into a copy of the configuration
        self._package: Any = onnxruntime_genai
        self._model = onnxruntime_genai.Model(str(model))
        self._tokenizer = onnxruntime_genai.Tokenizer(self._model)  # the other engines load theirs too

    def run(self, prompt: list[int], tokens: int) -> Timing:
        import numpy as np

        length = len(prompt) + tokens + 1
        options = self._package.GeneratorParams(self._model)
        # Neither random, nor shorter than asked for, nor with a penalty that would have to be computed.
        options.set_search_options(
            max_length=length, min_length=length, do_sample=False, repetition_penalty=1.0, top_k=1
        )
        generator = self._package.Generator(self._model, options)
        started = time.perf_counter()
        generator.append_tokens(np.array([prompt], np.int32))
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        ended = time.perf_counter()
        if len(generator.get_sequence(0)) != length:
            raise RuntimeError(f"{len(generator.get_sequence(0))} tokens came instead of {length}")
        return Timing(first - started, ended - first)


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
        self._vocabulary = self._llama.n_vocab()

    def run(self, prompt: list[int], tokens: int) -> Timing:
        context = self._llama._ctx.ctx
        self._package.llama_memory_clear(self._package.llama_get_memory(context), True)
        started = time.perf_counter()
        token = self._forward(context, prompt)
        first = time.perf_counter()
        for _ in range(tokens):
            token = self._forward(context, [token])
        return Timing(first - started, time.perf_counter() - first)

    def _forward(self, context: Any, ids: list[int]) -> int:
        import numpy as np

        array = (self._package.llama_token * len(ids))(*ids)
        code = self._package.llama_decode(context, self._package.llama_batch_get_one(array, len(ids)))
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        logits = self._package.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


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
        request = json.loads(line)
        if "memory" in request:
            answer: dict[str, Any] = memory_status()
        else:
            answer = engine.run(prompt_ids(request["prompt"]), request["tokens"])._asdict()
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
