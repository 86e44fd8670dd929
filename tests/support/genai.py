"""The same artifact in onnxruntime-genai, the engine of other languages and of mobile apps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qtool_runtime import manifest


def greedy(folder: Path, prompt: str, count: int) -> tuple[list[int], list[int]]:
    """Returns token ids of the prompt and of the answer, without the one that ends it.

    Skips the test where the engine is not installed.
    """
    # Its packages send telemetry unless they are told not to before the import.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    genai = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")
    model = genai.Model(str(folder))
    tokens = genai.Tokenizer(model).encode(prompt)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(tokens) + count)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(tokens)
    answer: list[int] = []
    while len(answer) < count and not generator.is_done():
        generator.generate_next_token()
        answer.append(int(generator.get_next_tokens()[0]))
    if answer[-1] in manifest.read(folder).generation.eos_token_ids:
        answer.pop()
    return [int(token) for token in tokens], answer
