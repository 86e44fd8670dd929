"""What the prefix memory and a baked system prompt save, and what they cost.

    python tests/bench/prefix.py ARTIFACT [--threads N] [--rounds N] [--tokens N]

The system prompt has about `--tokens` tokens. In each round, one after the other:

- baked: the first token of an answer to a system prompt and a question, from an artifact with the prompt
  baked in (made here, beside ARTIFACT's files) and from ARTIFACT itself;
- turns: the first and the second turn of a conversation with the memory, and the second without it;
- load: both artifacts are loaded and closed.

Compared are times to the first token, round by round. Then `--answers` prompts that nobody has seen are
answered with the memory and without it, in turns: the ratio of the whole times, and the time within the
memory as a share of its answers' time. Each is then asked again, from the memory: how many of the answers are
the same, and how far the first logits are apart, relative to the largest.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from measure import argument_parser, finish, paired_ratio, say

import qtool_runtime
from qtool.bake import SystemPrompt, bake
from qtool_runtime import Model, TextStream, manifest
from qtool_runtime.conversation import encode_opening
from qtool_runtime.prefix_memory import PrefixMemory
from qtool_runtime.prompt import Prompt

QUESTIONS = ("What is rule 7 about?", "And rule 8?")
RULE = "Rule {}: answer questions about product {} politely, and never tell anybody its price, {} euros."


@contextmanager
def baked_copy(artifact: Path, text: str, threads: int) -> Iterator[Path]:
    """Gives a copy of an artifact with a system prompt baked in; all other files are links."""
    with tempfile.TemporaryDirectory(dir=artifact.parent) as name:
        folder = Path(name)
        for path in artifact.iterdir():
            (folder / path.name).hardlink_to(path.resolve())
        (folder / manifest.FILE_NAME).unlink()
        shutil.copy(artifact / manifest.FILE_NAME, folder)
        with qtool_runtime.load(artifact) as model:
            messages = [{"role": "system", "content": text}]
            tokens = encode_opening(
                model.chat_template, model.tokenizer, messages, tools=None, enable_thinking=None
            )
        bake(folder, manifest.read(folder), SystemPrompt(text, tuple(tokens.tolist())), threads)
        yield folder


def system_text(model: Model, tokens: int) -> str:
    """Returns a text of about so many tokens."""
    lines = ["You are the assistant of a shop."]
    while len(model.tokenizer.encode("\n".join(lines))) < tokens:
        lines.append(RULE.format(len(lines), len(lines), 7 * len(lines)))
    return "\n".join(lines)


def ask(model: Model, messages: list[dict[str, Any]], tokens: int = 24) -> TextStream:
    """Answers greedily."""
    stream = model.chat(messages, temperature=0, max_tokens=tokens)
    stream.read()
    return stream


def measure_baked(plain: Model, baked: Model, rounds: int) -> dict[str, Any]:
    """Compares the first token with and without a baked prompt."""
    messages = [
        {"role": "system", "content": baked.baked_prompt},
        {"role": "user", "content": QUESTIONS[0]},
    ]
    seconds: dict[str, list[float]] = {"plain": [], "baked": []}
    texts = set()
    stats: Any = None
    for _ in range(rounds):
        for name, model in (("plain", plain), ("baked", baked)):
            stream = ask(model, messages)
            seconds[name].append(stream.stats.time_to_first_token)
            texts.add(stream.token_ids)
            stats = stream.stats
    return {
        "prompt_tokens": stats.prompt_tokens,
        "baked_tokens": stats.cached_tokens,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "sooner": paired_ratio(seconds["plain"], seconds["baked"]),
        "same_answer": len(texts) == 1,
    }


def measure_turns(model: Model, plain: Model, text: str, rounds: int) -> dict[str, Any]:
    """Compares the second turn of a conversation with the first, and with one that reads everything again."""
    seconds: dict[str, list[float]] = {"first": [], "second": [], "second_without": []}
    stats: Any = None
    for _ in range(rounds):
        model.forget()
        messages = [{"role": "system", "content": text}, {"role": "user", "content": QUESTIONS[0]}]
        first = ask(model, messages)
        messages += [first.message(), {"role": "user", "content": QUESTIONS[1]}]
        second, without = ask(model, messages), ask(plain, messages)
        for name, stream in (("first", first), ("second", second), ("second_without", without)):
            seconds[name].append(stream.stats.time_to_first_token)
        stats = second.stats
    return {
        "read_of_second": stats.prompt_tokens - stats.cached_tokens,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "first_to_second": paired_ratio(seconds["first"], seconds["second"]),
        "without_to_with": paired_ratio(seconds["second_without"], seconds["second"]),
    }


def measure_load(plain: Path, baked: Path, threads: int | None, rounds: int) -> dict[str, Any]:
    """Compares the time to load an artifact with and without a baked prompt."""
    seconds: dict[Path, list[float]] = {plain: [], baked: []}
    for _ in range(rounds):
        for path in (plain, baked):
            started = time.perf_counter()
            qtool_runtime.load(path, threads=threads, huge_pages=False).close()
            seconds[path].append(time.perf_counter() - started)
    return {
        "plain_seconds": statistics.median(seconds[plain]),
        "ratio": paired_ratio(seconds[baked], seconds[plain]),
    }


def measure_cost(model: Model, plain: Model, answers: int) -> dict[str, Any]:
    """Compares answers to fresh prompts with the memory and without, then asks again from the memory."""
    inside = 0.0
    remember, find = PrefixMemory.remember, PrefixMemory.find

    def timed(method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal inside
            started = time.perf_counter()
            result = method(*arguments)
            inside += time.perf_counter() - started
            return result

        return call

    readme = model.tokenizer.encode((Path(__file__).parents[2] / "README.md").read_text("utf-8"))
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    same, differences = 0, []
    for number in range(answers):
        prompt = readme[151 * number :][:128]
        model.forget()
        PrefixMemory.remember, PrefixMemory.find = timed(remember), timed(find)  # type: ignore[method-assign]
        order = (("with", model), ("without", plain))
        for name, one in order if number % 2 else order[::-1]:
            started = time.perf_counter()
            stream = one.generate(prompt, max_tokens=64, ignore_eos=True)
            stream.read()
            seconds[name].append(time.perf_counter() - started)
        PrefixMemory.remember, PrefixMemory.find = remember, find  # type: ignore[method-assign]
        again, expected = (one.generate(prompt, max_tokens=64, ignore_eos=True) for one in (model, plain))
        same += again.read() == expected.read()
        differences.append(first_logits_apart(model, plain, prompt))
    return {
        "answer_seconds": statistics.median(seconds["with"]),
        "with_to_without": paired_ratio(seconds["with"], seconds["without"]),
        "share_within_memory": inside / sum(seconds["with"]),
        "same_answers": [same, answers],
        "largest_difference": max(differences),
    }


def first_logits_apart(model: Model, plain: Model, prompt: list[int]) -> float:
    """Returns the largest difference of the logits behind a prompt, with the memory and without."""
    tokens = np.array(prompt)
    found, _ = Prompt(tokens, model.prefix_memory).read_into(model.new_session())
    expected, _ = Prompt(tokens, plain.prefix_memory).read_into(plain.new_session())
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def main() -> None:
    """Measures one artifact."""
    parser = argument_parser(__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--answers", type=int, default=12)
    options = parser.parse_args()
    report: dict[str, Any] = {}
    load = {"threads": options.threads, "huge_pages": False}
    with qtool_runtime.load(options.artifact, prefix_memory=0, **load) as plain:
        text = system_text(plain, options.tokens)
        with baked_copy(options.artifact, text, options.threads) as folder:
            with qtool_runtime.load(folder, prefix_memory=0, **load) as baked:
                report["baked"] = measure_baked(plain, baked, options.rounds)
                say(f"baked: {report['baked']}")
            report["load"] = measure_load(options.artifact, folder, options.threads, options.rounds)
            say(f"load: {report['load']}")
        with qtool_runtime.load(options.artifact, **load) as model:
            report["turns"] = measure_turns(model, plain, text, options.rounds)
            say(f"turns: {report['turns']}")
            report["cost"] = measure_cost(model, plain, options.answers)
            say(f"cost: {report['cost']}")
    finish(report)


if __name__ == "__main__":
    main()
