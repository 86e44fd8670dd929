"""From a conversation to the token ids of a prompt, so that no content can pass for a control token.

A template joins control tokens and content to one text. A message that holds the text `<|im_end|>` would end
its turn there, and could go on as the system. So before rendering, a mark is put into the names of control
tokens in all content (after their first character). Afterwards, what reads as a control token is the
template's; the marks are taken out of the rest, which is encoded as plain text.

This concerns tokens that the tokenizer calls special. Tags such as `<think>` and `<tool_call>` are ordinary
text to Qwen's tokenizers, and templates look for them in earlier answers: they stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.chat import ChatTemplate, Message
from qtool_runtime.errors import GenerationError
from qtool_runtime.text import Tokenizer

MARKS = range(0xE000, 0xF900)
"""Characters for private use: one that the conversation does not use becomes the mark."""


def encode_conversation(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    enable_thinking: bool | None,
) -> tuple[NDArray[np.int64], str]:
    """Renders and encodes a conversation.

    Returns:
        Token ids of shape (count,), and the text they stand for.

    Raises:
        GenerationError: the messages are malformed, or the template refuses them or fails.
    """
    mark = _unused_mark([messages, tools])
    names = tokenizer.special_tokens
    marked, marked_tools = _marked(messages, names, mark), _marked(tools, names, mark)
    prompt = template.render(marked, tools=marked_tools, enable_thinking=enable_thinking)
    if mark in prompt:
        ids = tokenizer.encode_marked(prompt, mark)
    else:
        ids = tokenizer.encode(prompt, add_special_tokens=False)
    return np.array(ids, np.int64), prompt.replace(mark, "")


def encode_opening(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    enable_thinking: bool | None,
) -> NDArray[np.int64]:
    """Returns the token ids that a conversation starts with, however its user goes on.

    They are what two ways of going on have in common: a template decides which control tokens follow a
    message, and which parts of earlier answers it leaves out later.

    Args:
        template: the model's.
        tokenizer: the model's.
        messages: the conversation so far; may be empty.
        tools: JSON schemas of functions that the model may call.
        enable_thinking: for models that can think first; None leaves it to the template.

    Returns:
        Shape (count,).

    Raises:
        GenerationError: the messages are malformed, or the template refuses them or fails.
    """
    one, other = (
        encode_conversation(
            template,
            tokenizer,
            [*messages, {"role": "user", "content": content}],
            tools=tools,
            enable_thinking=enable_thinking,
        )[0]
        for content in ("A", "7")  # no token of a text starts with both
    )
    count = min(len(one), len(other))
    different = np.flatnonzero(one[:count] != other[:count])
    return one[: different[0]] if different.size else one[:count]


def _unused_mark(content: Any) -> str:
    used = set().union(*_strings(content))
    for code in MARKS:
        if chr(code) not in used:
            return chr(code)
    raise GenerationError(
        f"the messages use all {len(MARKS)} private-use characters", hint="Leave one of them out."
    )


def _strings(value: Any) -> Iterator[str]:
    """Yields every string within nested mappings and sequences, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _strings(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _marked(value: Any, names: Collection[str], mark: str) -> Any:
    """Returns a copy with marks in every string."""
    if isinstance(value, str):
        return _mark_text(value, names, mark)
    if isinstance(value, Mapping):
        return {_marked(key, names, mark): _marked(item, names, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item, names, mark) for item in value]
    return value


def _mark_text(text: str, names: Collection[str], mark: str) -> str:
    """Puts the mark into every name, and into the start of one at the end, which more text could complete."""
    for name in names:
        text = text.replace(name, name[0] + mark + name[1:])
    visible = text.rstrip()  # templates strip content
    longest = max(map(len, names), default=0)
    for length in range(min(longest - 1, len(visible)), 0, -1):
        start = len(visible) - length
        if any(name.startswith(visible[start:]) for name in names):
            return text[: start + 1] + mark + text[start + 1 :]
    return text
