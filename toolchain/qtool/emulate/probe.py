"""What an artifact does on a processor, as data. A script: it also runs where nothing but the runtime is.

    python probe.py < REQUEST > FINDINGS

A request and findings are JSON, see `Request` and `probe`. Logits go to a file of numpy's.
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qtool_runtime
from qtool_runtime import Model


@dataclass(frozen=True)
class Request:
    """What to do.

    Attributes:
        artifact: its folder.
        prompt: what the user says; an artifact without a chat template continues it.
        tokens: how many to generate, greedily, whatever ends an answer.
        threads: CPU threads.
        answer: token ids whose logits are wanted; empty for those that are generated.
        logits: the file to write them to.
    """

    artifact: str
    prompt: str
    tokens: int
    threads: int
    answer: tuple[int, ...]
    logits: str

    def to_json(self) -> str:
        """Returns the request for another process."""
        return json.dumps(asdict(self))


def probe(request: Request) -> dict[str, Any]:
    """Generates from a prompt, then computes logits for a given answer, in one pass and token by token.

    One pass takes the kernels for matrices, token by token those for vectors. The file of logits holds both:
    float32 of shape (2, tokens, vocabulary).

    Returns:
        "prompt" and "answer": token ids; "text" of the answer; "machine", "python" and "onnxruntime".
    """
    import onnxruntime

    # With onnxruntime's own kernels, so that only the processor differs.
    loaded = qtool_runtime.load(request.artifact, threads=request.threads, kernels="off", prefix_memory=0)
    with loaded as model:
        prompt = _prompt(model, request.prompt)
        stream = model.generate(prompt, max_tokens=request.tokens, ignore_eos=True)
        text = stream.read()
        answer = [int(token) for token in stream.token_ids]
        np.save(request.logits, _logits(model, prompt, list(request.answer) or answer))
    return {
        "prompt": prompt,
        "answer": answer,
        "text": text,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }


def _prompt(model: Model, text: str) -> list[int]:
    """Returns the token ids of a conversation that begins, or of the plain text."""
    try:
        rendered = model.chat_template.render([{"role": "user", "content": text}])
    except qtool_runtime.GenerationError:  # a base model
        return list(model.tokenizer.encode(text))
    return list(model.tokenizer.encode(rendered, add_special_tokens=False))


def _logits(model: Model, prompt: list[int], answer: list[int]) -> NDArray[np.float32]:
    """Returns the logits from which each token of the answer is chosen: (2, tokens, vocabulary)."""
    session = model.new_session()
    at_once = session.forward(prompt + answer[:-1], rows=len(answer)).copy()
    session.truncate(len(prompt) - 1)
    one_by_one = [session.forward([token]).copy() for token in (prompt[-1], *answer[:-1])]
    session.close()
    return np.stack([at_once, np.concatenate(one_by_one)])


def main() -> None:
    """Answers the request on standard input."""
    request = json.load(sys.stdin)
    try:
        findings = probe(Request(**request))
    except qtool_runtime.QtoolError as error:
        sys.exit(f"{error.message} {error.hint}".strip())
    print(json.dumps(findings))


if __name__ == "__main__":
    main()
