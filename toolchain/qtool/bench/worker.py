"""One inference engine in a process of its own: a script that answers lines of JSON.

    python worker.py ENGINE

Any interpreter that has the engine's packages and numpy can run it, whether qtool is installed there or not:
it imports nothing of qtool's (only the engine called qtool does, the runtime). Every line of standard input
is a request, every line of standard output its answer:

- {"check": true}: are the packages there? {"installed": …, "version": …}, without importing them.
- {"load": {"model": path, …}}, the rest as in `LoadOptions`: imports and loads.
  {"import_seconds": …, "load_seconds": …, "kernels": …}
- {"prompt": [ids], "tokens": …}: reads a prompt into an empty cache, as a new request that will be answered
  with at most that many further tokens, and chooses the first token. {"seconds": …} from request to token.
- {"advance": count}: generates that many further tokens, greedily. {"seconds": …}
- {"memory": true}: bytes of this process, see `memory`.

Whatever fails ends the process: a line that says why is then the last on standard error.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime's and onnxruntime-genai's; read when they are imported
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model.

    Attributes:
        threads: CPU threads.
        capacity: most tokens of a prompt and its answer together.
        provider: where it runs, such as "cpu"; onnxruntime-genai gets "" for the artifact's own choice.
        kernels: what computes; for qtool only.
    """

    threads: int
    capacity: int
    provider: str
    kernels: str


class Engine(ABC):
    """A loaded model.

    Args:
        model: file or folder.
        options: how to load it.
    """

    kernels: str | None = None
    """What computes, where the engine has a choice."""

    packages: ClassVar[tuple[str, ...]]
    """Names to import; the first is the engine itself."""
    distribution: ClassVar[str]
    """Name of the installed package, for its version."""

    @abstractmethod
    def __init__(self, model: Path, options: LoadOptions) -> None: ...

    @abstractmethod
    def start(self, prompt: list[int], tokens: int) -> None:
        """Reads a prompt into an empty cache, to be continued by `tokens`, and chooses the first token."""

    @abstractmethod
    def advance(self, tokens: int) -> None:
        """Generates that many further tokens."""


class Qtool(Engine):
    """qtool_runtime as an application uses it: tokens become text too, which the other engines leave out."""

    packages = ("qtool_runtime",)
    distribution = "qtool-edge"

    def __init__(self, model: Path, options: LoadOptions) -> None:
        package = importlib.import_module("qtool_runtime")
        # Without the capacity, as an application does: the cache grows in steps.
        self._model = package.load(
            model,
            threads=options.threads,
            provider=options.provider,
            kernels=options.kernels,
            prefix_memory=0,
        )
        self.kernels = self._model.kernels.name
        self._stream: Any = None

    def start(self, prompt: list[int], tokens: int) -> None:
        """Begins an answer that does not end early."""
        if self._stream is not None:
            self._stream.close()
        self._stream = self._model.generate(prompt, max_tokens=tokens + 1, ignore_eos=True)
        self.advance(1)

    def advance(self, tokens: int) -> None:
        """Goes on with the answer."""
        found = self._stream.stats.token_ids
        before = len(found)
        for _ in range(tokens):
            self._stream.step()
        if len(found) != before + tokens:
            raise RuntimeError(f"the answer ended early: {self._stream.stop_reason}")


class OnnxruntimeGenai(Engine):
    """onnxruntime-genai's Generator over an artifact, with a thread count that the artifact does not name."""

    packages = ("onnxruntime_genai",)
    distribution = "onnxruntime-genai"

    def __init__(self, model: Path, options: LoadOptions) -> None:
        self._package: Any = importlib.import_module("onnxruntime_genai")
        config = self._package.Config(str(model))
        session_options = {"intra_op_num_threads": options.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session_options}}}))
        if options.provider:
            config.clear_providers()
            if options.provider != "cpu":
                config.append_provider({"directml": "dml"}.get(options.provider, options.provider))
        self._model = self._package.Model(config)
        self._tokenizer = self._package.Tokenizer(self._model)  # the other engines load theirs too
        self._capacity = options.capacity
        self._generator: Any = None

    def start(self, prompt: list[int], tokens: int) -> None:
        """Makes a Generator, which allocates its cache."""
        import numpy as np

        self._generator = None
        options = self._package.GeneratorParams(self._model)
        # Neither random, nor shorter than asked for, nor with a penalty that would have to be computed.
        options.set_search_options(
            max_length=self._capacity,
            min_length=self._capacity,
            do_sample=False,
            repetition_penalty=1.0,
            top_k=1,
        )
        self._generator = self._package.Generator(self._model, options)
        self._generator.append_tokens(np.array([prompt], np.int32))
        self.advance(1)

    def advance(self, tokens: int) -> None:
        """Goes on with the Generator."""
        for _ in range(tokens):
            self._generator.generate_next_token()


class ForwardEngine(Engine):
    """A model that is called once for each forward pass; the most likely token is chosen here."""

    _token = 0

    def start(self, prompt: list[int], tokens: int) -> None:
        """Reads the prompt in one pass."""
        self._clear()
        self._token = self._forward(prompt)

    def advance(self, tokens: int) -> None:
        """Makes a pass for each token."""
        for _ in range(tokens):
            self._token = self._forward([self._token])

    @abstractmethod
    def _clear(self) -> None:
        """Empties the cache."""

    @abstractmethod
    def _forward(self, ids: list[int]) -> int:
        """Reads tokens, and returns the most likely one after them."""


class LlamaCpp(ForwardEngine):
    """llama.cpp through the low-level interface of llama-cpp-python: no Python per token but the arg-max."""

    packages = ("llama_cpp",)
    distribution = "llama-cpp-python"

    def __init__(self, model: Path, options: LoadOptions) -> None:
        self._package: Any = importlib.import_module("llama_cpp")
        self._llama = self._package.Llama(
            str(model),
            n_ctx=options.capacity,
            n_batch=options.capacity,
            n_threads=options.threads,
            n_threads_batch=options.threads,
            n_gpu_layers=0,
            verbose=False,
        )
        self._context: Any = self._llama.ctx
        self._vocabulary = self._llama.n_vocab()

    def _clear(self) -> None:
        self._package.llama_memory_clear(self._package.llama_get_memory(self._context), True)

    def _forward(self, ids: list[int]) -> int:
        import numpy as np

        array = (self._package.llama_token * len(ids))(*ids)
        code = self._package.llama_decode(self._context, self._package.llama_batch_get_one(array, len(ids)))
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        logits = self._package.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


class OpenvinoGenai(Engine):
    """openvino-genai's LLMPipeline.

    It has no call for a single token, so `generate` runs in a thread, and its streamer waits between two
    tokens until the next is wanted. That needs the attention backend SDPA, which calls the streamer between
    two steps; PA calls it from another thread and runs ahead. SDPA was also the faster one for one request.
    """

    packages = ("openvino_genai", "openvino")
    distribution = "openvino-genai"

    def __init__(self, model: Path, options: LoadOptions) -> None:
        self._package: Any = importlib.import_module("openvino_genai")
        self._tensor: Any = importlib.import_module("openvino").Tensor
        self._pipeline = self._package.LLMPipeline(
            str(model), "CPU", INFERENCE_NUM_THREADS=options.threads, ATTENTION_BACKEND="SDPA"
        )
        self._generation: threading.Thread | None = None
        self._wanted = threading.Semaphore(0)
        self._stopped = False
        self._made: SimpleQueue[BaseException | None] = SimpleQueue()
        """None for a token, or what ended the generation."""

    def start(self, prompt: list[int], tokens: int) -> None:
        """Begins an answer in a thread, and waits for its first token."""
        self._stop()
        self._stopped, self._wanted, self._made = False, threading.Semaphore(0), SimpleQueue()
        count = tokens + 1
        options = self._package.GenerationConfig(
            max_new_tokens=count, min_new_tokens=count, ignore_eos=True, do_sample=False
        )
        self._generation = threading.Thread(target=self._generate, args=(prompt, options), daemon=True)
        self._generation.start()
        self._wait(1)

    def advance(self, tokens: int) -> None:
        """Lets the thread generate so many tokens."""
        self._wanted.release(tokens)
        self._wait(tokens)

    def _wait(self, tokens: int) -> None:
        for _ in range(tokens):
            if (error := self._made.get()) is not None:
                raise error

    def _stop(self) -> None:
        if self._generation is not None:
            self._stopped = True
            self._wanted.release()
            self._generation.join()

    def _generate(self, prompt: list[int], options: Any) -> None:
        import numpy as np

        made, wanted, status = self._made, self._wanted, self._package.StreamingStatus

        def stream(self_: object, ids: int | list[int]) -> Any:
            for _ in range(len(ids) if isinstance(ids, list) else 1):
                made.put(None)
                wanted.acquire()
            return status.CANCEL if self._stopped else status.RUNNING

        # Made here, because its base class is known only now.
        streamer = type(
            "Streamer", (self._package.StreamerBase,), {"write": stream, "end": lambda self_: None}
        )
        try:
            self._pipeline.generate(self._tensor(np.array([prompt], np.int64)), options, streamer())
            made.put(RuntimeError("the answer ended early"))
        except BaseException as error:
            made.put(error)


class Transformers(ForwardEngine):
    """A transformers model with its own cache, without the work that `generate` does around each token."""

    packages = ("transformers", "torch")
    distribution = "transformers"

    def __init__(self, model: Path, options: LoadOptions) -> None:
        package: Any = importlib.import_module("transformers")
        self._torch: Any = importlib.import_module("torch")
        self._torch.set_num_threads(options.threads)
        self._model = package.AutoModelForCausalLM.from_pretrained(str(model), local_files_only=True).eval()
        self._tokenizer = package.AutoTokenizer.from_pretrained(str(model), local_files_only=True)
        self._cache: Any = None

    def _clear(self) -> None:
        self._cache = None

    def _forward(self, ids: list[int]) -> int:
        with self._torch.inference_mode():
            tensor = self._torch.tensor([ids])
            output = self._model(tensor, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        return int(output.logits[0, -1].argmax())


ENGINES: dict[str, type[Engine]] = {
    "qtool": Qtool,
    "onnxruntime-genai": OnnxruntimeGenai,
    "llama.cpp": LlamaCpp,
    "openvino-genai": OpenvinoGenai,
    "transformers": Transformers,
}


def check(engine: type[Engine]) -> dict[str, Any]:
    """Says whether an engine's packages are there, and which version it has, without importing them."""
    if any(importlib.util.find_spec(package) is None for package in engine.packages):
        return {"installed": False, "version": None}
    try:
        return {"installed": True, "version": metadata.version(engine.distribution)}
    except metadata.PackageNotFoundError:  # importable, though not installed as a package
        return {"installed": True, "version": None}


def load(engine: type[Engine], options: dict[str, Any]) -> tuple[Engine, dict[str, Any]]:
    """Imports and loads an engine, and says how long each took."""
    started = time.perf_counter()
    for package in engine.packages:
        importlib.import_module(package)
    imported = time.perf_counter()
    loaded = engine(Path(options.pop("model")), LoadOptions(**options))
    seconds = time.perf_counter() - imported
    return loaded, {
        "import_seconds": imported - started,
        "load_seconds": seconds,
        "kernels": loaded.kernels,
    }


def memory() -> dict[str, int]:
    """Returns this process's memory in bytes, as far as the system tells.

    On Linux "resident" (all pages in memory now), "anonymous" (those that are not of files, which the kernel
    cannot simply drop) and "peak" (the most that was resident). On other systems like Unix only the peak.
    """
    names = {"VmRSS": "resident", "RssAnon": "anonymous", "VmHWM": "peak"}
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        try:
            import resource
        except ImportError:
            return {}
        unit = 1 if sys.platform == "darwin" else 1024
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[key].split()[0]) * 1024 for key, name in names.items() if key in fields}


def respond(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer to one request."""
    if "memory" in request:
        return dict(memory())
    started = time.perf_counter()
    if "prompt" in request:
        engine.start(request["prompt"], request["tokens"])
    else:
        engine.advance(request["advance"])
    return {"seconds": time.perf_counter() - started}


def serve(engine: type[Engine]) -> None:
    """Answers requests until standard input ends."""
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    loaded: Engine | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "check" in request:
            answer = check(engine)
        elif "load" in request:
            loaded, answer = load(engine, request["load"])
        else:
            assert loaded is not None, "nothing is loaded"
            answer = respond(loaded, request)
        print(json.dumps(answer), file=answers)


def main() -> None:
    """Serves the engine named on the command line."""
    os.environ.update(ENVIRONMENT)
    status = 0
    try:
        serve(ENGINES[sys.argv[1]])
    except BaseException as error:
        print("".join(traceback.format_exception_only(type(error), error)).strip(), file=sys.stderr)
        status = 1
    sys.stderr.flush()
    os._exit(status)  # taking a large model apart would only cost time


if __name__ == "__main__":
    main()
