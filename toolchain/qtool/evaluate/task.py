"""How many tasks an artifact of the embedded model solves.

The embedded model was trained on made-up tasks with one right answer each, so that it can be graded exactly.
Other models cannot: their agreement with the source has to do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from qtool.nano.accuracy import Score, measure
from qtool.nano.corpus import held_out
from qtool.nano.unit import Message
from qtool.pipeline import Progress
from qtool_runtime import Model

EXAMPLES = 120
"""Held-out prompts: one more or less right moves the share by 0.8 %."""
CONTEXT = 1024
"""Tokens that the longest of them needs room for, with its answer."""
_MOST_TOKENS = 160


def task_accuracies(models: Sequence[Model], progress: Progress) -> list[Score | None]:
    """Asks artifacts of the embedded model questions that it was not trained on; returns a score of each."""
    examples = held_out(EXAMPLES)
    asked = 0

    def score(model: Model) -> Score:
        def answer(messages: Sequence[Message], thinking: bool) -> str:
            nonlocal asked
            text = answer_with_calls(model, messages, thinking)
            asked += 1
            progress("tasks", asked, len(examples) * len(models))
            return text

        return measure(answer, examples).overall

    return [score(model) for model in models]


def answer_with_calls(model: Model, messages: Sequence[Message], thinking: bool) -> str:
    """Returns what a model says to a conversation, tool calls included, without its reasoning."""
    stream = model.chat(messages, enable_thinking=thinking, temperature=0, max_tokens=_MOST_TOKENS)
    text = stream.read()
    calls = [{"name": call.name, "arguments": call.arguments} for call in stream.tool_calls]
    return text + "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)
