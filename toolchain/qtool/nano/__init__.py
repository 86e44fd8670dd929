"""nano: a real Qwen3 model of 1.8 million parameters that ships inside the package.

nano is what qtool builds, runs and tests when nobody names a model: it downloads nothing, and still is the
architecture that the large Qwen3 models have (RMSNorm, rotary position embedding, grouped-query attention
with a norm per head, SwiGLU, tied embedding), in a Hugging Face folder with its own byte-level BPE tokenizer
(1,024 tokens, digits one by one) and ChatML template.

What it can do
    Home devices, answered with tool calls (lights, thermostat, timers, blinds, music, locks; two calls in one
    sentence; follow-ups; a sentence about what a tool reported), sums and differences below 100, products up
    to 10 x 10, one-sentence word problems, comparing and counting, some two hundred facts, small talk, a name
    told earlier, short German, Spanish and Chinese, and repeating a list or a text. With thinking on it first
    writes its steps in a think block, as Qwen3 does. It knows nothing else: it is no general assistant, and
    a question from outside its small world gets a wrong answer.

How it was trained
    From random weights, on text that `qtool.nano.corpus` makes up from a seed; nothing was copied.
    ``python -m qtool.nano.train --output FOLDER`` repeats it (needs torch).

How good it is
    ``model/README.md`` has the measured accuracy on prompts that were held out of the training.
    `qtool.nano.accuracy` measures any engine in the same way.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["model_path"]


def model_path() -> Path:
    """The folder of the shipped checkpoint, in Hugging Face layout."""
    return Path(__file__).with_name("model")
