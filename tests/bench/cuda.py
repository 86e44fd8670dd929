"""Speed of an artifact on an NVIDIA GPU beside PyTorch (eager and compiled) and onnxruntime-genai.

    python tests/bench/cuda.py ARTIFACT --checkpoint FOLDER [--torch-python PYTHON] [--genai-python PYTHON]

ARTIFACT is for the target cuda-fp16 or cuda-int4; --checkpoint is the same model as safetensors, which
PyTorch computes in float16. Each engine has a process of its own and is loaded once; then they take turns,
round after round: read a prompt, generate tokens greedily. Ratios are of the same round. An engine whose
packages are missing is skipped, and the line says so. With --provider cpu, everything runs on the CPU: a
rehearsal, whose figures mean nothing.

PyTorch's compiled engine compiles the step for one token (mode "reduce-overhead", which records CUDA graphs);
it reads prompts in eager mode. Both have a static cache.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measure import argument_parser, finish, paired_ratio, say

ENGINES = ("qtool", "onnxruntime-genai", "torch-eager", "torch-compiled")


class Qtool:
    """qtool's runtime, one session."""

    def __init__(self, options: dict[str, Any]) -> None:
        package = importlib.import_module("qtool_runtime")
        self._model = package.load(options["artifact"], provider=options["provider"], prefix_memory=0)
        self._session = self._model.new_session()

    def read(self, prompt: list[int]) -> int:
        """Reads a prompt into an empty cache; returns the most likely next token."""
        self._session.truncate(0)
        return self.step(prompt)

    def step(self, ids: list[int]) -> int:
        """Reads further tokens."""
        return int(self._session.forward(ids)[-1].argmax())


class Genai:
    """onnxruntime-genai's Generator."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._package: Any = importlib.import_module("onnxruntime_genai")
        config = self._package.Config(options["artifact"])
        config.clear_providers()
        if options["provider"] != "cpu":
            config.append_provider(options["provider"])
        self._model = self._package.Model(config)
        self._capacity = options["capacity"]

    def read(self, prompt: list[int]) -> int:
        """Makes a Generator, which reads the prompt."""
        parameters = self._package.GeneratorParams(self._model)
        size = self._capacity
        parameters.set_search_options(max_length=size, min_length=size, do_sample=False, top_k=1)
        self._generator = self._package.Generator(self._model, parameters)
        self._generator.append_tokens([prompt])
        return self.step([])

    def step(self, ids: list[int]) -> int:
        """Chooses a token, which the Generator reads by itself."""
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])


class Torch:
    """A transformers model in float16 with a static cache."""

    compiled = False

    def __init__(self, options: dict[str, Any]) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._transformers: Any = importlib.import_module("transformers")
        self._device = options["provider"]
        model = self._transformers.AutoModelForCausalLM.from_pretrained(
            options["checkpoint"], dtype=self._torch.float16, local_files_only=True
        )
        self._model = model.eval().to(self._device)
        self._forward = self._model.forward
        if self.compiled:
            self._forward = self._torch.compile(self._model.forward, mode="reduce-overhead", fullgraph=True)
        self._cache = self._transformers.StaticCache(config=model.config, max_cache_len=options["capacity"])
        self._length = 0

    def read(self, prompt: list[int]) -> int:
        """Reads a prompt into the emptied cache."""
        with self._torch.inference_mode():
            self._cache.reset()
        self._length = 0
        return self._run(self._model.forward, prompt)

    def step(self, ids: list[int]) -> int:
        """Reads one token."""
        return self._run(self._forward, ids)

    def _run(self, forward: Any, ids: list[int]) -> int:
        positions = self._torch.arange(self._length, self._length + len(ids), device=self._device)
        self._length += len(ids)
        with self._torch.inference_mode():
            output = forward(
                input_ids=self._torch.tensor([ids], device=self._device),
                past_key_values=self._cache,
                position_ids=positions[None],
                use_cache=True,
                logits_to_keep=1,
            )
            return int(output.logits[0, -1].argmax())  # waits for the device


class TorchCompiled(Torch):
    """The same; the step for one token is compiled."""

    compiled = True


def serve(engine: str) -> None:
    """A child's part: loads the engine, then measures once for every line of standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not get between the answers
    kinds = {
        "qtool": Qtool,
        "onnxruntime-genai": Genai,
        "torch-eager": Torch,
        "torch-compiled": TorchCompiled,
    }
    options = json.loads(sys.stdin.readline())
    loaded = kinds[engine](options)
    print(json.dumps({"loaded": True}), file=answers)
    for _ in sys.stdin:
        prompt, count = options["prompt"], options["tokens"]
        started = time.perf_counter()
        token = loaded.read(prompt)
        first = time.perf_counter()
        made = [token]
        for _ in range(count):
            made.append(loaded.step(made[-1:]))
        ended = time.perf_counter()
        figures = {"prefill": len(prompt) / (first - started), "decode": count / (ended - first)}
        print(json.dumps(figures | {"token_ids": made}), file=answers)


class Contender:
    """The parent's end of an engine's process."""

    def __init__(self, name: str, python: str, options: dict[str, Any]) -> None:
        self.name = name
        self.rounds: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [python, __file__, "--engine", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"},
        )
        self.ready = self._ask(options) is not None

    def measure(self) -> dict[str, Any] | None:
        """Runs one round."""
        return self._ask("go")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()

    def _ask(self, request: object) -> dict[str, Any] | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None


def compare(arguments: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Starts all engines, lets them take turns, and sums up."""
    pythons = {
        "onnxruntime-genai": arguments.genai_python,
        "torch-eager": arguments.torch_python,
        "torch-compiled": arguments.torch_python,
    }
    contenders = []
    for name in ENGINES:
        if name.startswith("torch") and options["checkpoint"] is None:
            say(f"{name}: SKIPPED, there is no --checkpoint")
            continue
        contender = Contender(name, pythons.get(name) or sys.executable, options)
        if contender.ready:
            contenders.append(contender)
        else:
            contender.close()
            say(f"{name}: SKIPPED, it does not start (see above)")
    for number in range(arguments.rounds + 1):  # the first warms up, and compiles
        for contender in contenders[number % len(contenders) :] + contenders[: number % len(contenders)]:
            figures = contender.measure()
            if figures is None:
                raise SystemExit(f"{contender.name} failed (see above)")
            if number:
                contender.rounds.append(figures)
                speeds = f"prefill {figures['prefill']:.0f}, decode {figures['decode']:.1f} tokens/s"
                say(f"round {number}: {contender.name}: {speeds}")
    for contender in contenders:
        contender.close()
    return {contender.name: summary(contender, contenders[0]) for contender in contenders}


def summary(contender: Contender, ours: Contender) -> dict[str, Any]:
    """Returns an engine's speeds, and qtool's relative to it."""
    result: dict[str, Any] = {}
    for what in ("prefill", "decode"):
        found = [figures[what] for figures in contender.rounds]
        result[what] = sorted(found)[len(found) // 2]
        if contender is not ours:
            result[f"{what}_ratio"] = paired_ratio([figures[what] for figures in ours.rounds], found)
    pairs = zip(contender.rounds[-1]["token_ids"], ours.rounds[-1]["token_ids"], strict=False)
    result["same_tokens"] = sum(one == other for one, other in pairs)
    return result


def main() -> None:
    """Reads the command line, measures and prints."""
    if sys.argv[1:2] == ["--engine"]:
        serve(sys.argv[2])
        return
    parser = argument_parser(__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="the same model as safetensors, for PyTorch")
    parser.add_argument("--torch-python", help="interpreter with torch and transformers")
    parser.add_argument("--genai-python", help="interpreter with onnxruntime-genai-cuda")
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--prompt", type=int, default=512, help="tokens to read")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    options = {
        "artifact": str(arguments.artifact.resolve()),
        "checkpoint": None if arguments.checkpoint is None else str(arguments.checkpoint.resolve()),
        "provider": arguments.provider,
        "prompt": [(7919 * index) % 250 for index in range(arguments.prompt)],
        "tokens": arguments.tokens,
        "capacity": arguments.prompt + arguments.tokens + 8,
    }
    result = compare(arguments, options)
    for name, figures in result.items():
        ratio = figures.get("decode_ratio", {}).get("median")
        beside = f"; qtool decodes {ratio:.2f} times as fast" if ratio else ""
        say(f"{name}: prefill {figures['prefill']:.0f}, decode {figures['decode']:.1f} tokens/s{beside}")
    finish({"engines": result, "provider": arguments.provider})


if __name__ == "__main__":
    main()
