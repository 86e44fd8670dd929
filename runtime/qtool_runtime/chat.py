"""Chat templates: messages to the text of a prompt, with the model's own Jinja template.

A template comes with the model, from a stranger. It runs in Jinja's immutable sandbox (no attribute that
starts with an underscore, no changes to what it is given), without loaders, and with its size, its loops and
its output bounded.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qtool_runtime.errors import ArtifactError, GenerationError

MAXIMUM_TEMPLATE_BYTES = 1 << 20
MAXIMUM_OUTPUT_CHARACTERS = 16 << 20
"""Several million tokens: beyond any context, and small enough to hold."""

MAXIMUM_LOOPS = 100_000
"""Numbers that all `range` calls of one rendering give together."""

MAXIMUM_POWER = 10_000
"""Largest operand of a power in a template."""

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja text.
        variables: further names the template may use, such as "bos_token".

    Raises:
        ArtifactError: the template is too large or does not parse.
    """

    def __init__(self, source: str, variables: Mapping[str, Any] | None = None) -> None:
        if len(source.encode("utf-8", "replace")) > MAXIMUM_TEMPLATE_BYTES:
            raise ArtifactError(
                f"the chat template has {len(source)} characters; the limit is {MAXIMUM_TEMPLATE_BYTES} bytes"
            )
        self._variables = dict(variables or {})
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ArtifactError(f"the chat template does not parse: {error}") from error

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate:
        """Reads `chat_template.jinja` and the special tokens of `tokenizer_config.json` from an artifact.

        Raises:
            GenerationError: the artifact has no chat template.
            ArtifactError: it cannot be read.
        """
        path = folder / "chat_template.jinja"
        if not path.is_file():
            raise GenerationError(
                "the artifact has no chat template: it is a base model",
                hint="Use generate() with a plain prompt, or build from an instruction-tuned model.",
            )
        if path.stat().st_size > MAXIMUM_TEMPLATE_BYTES:
            raise ArtifactError(
                f"{path} has {path.stat().st_size} bytes; the limit is {MAXIMUM_TEMPLATE_BYTES}"
            )
        try:
            return cls(path.read_text("utf-8"), _special_tokens(folder / "tokenizer_config.json"))
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Returns the prompt for a conversation.

        Args:
            messages: each with a "role" and, mostly, "content"; also "tool_calls", "reasoning_content" and
                whatever else the template knows.
            tools: JSON schemas of functions that the model may call.
            enable_thinking: for models that can think first; None leaves it to the template.
            add_generation_prompt: end with the start of the assistant's answer.

        Raises:
            GenerationError: the messages are malformed, or the template refuses them or fails.
        """
        check_messages(messages)
        variables: dict[str, Any] = {
            **self._variables,
            "range": _bounded_range(),
            "messages": list(messages),
            "tools": None if tools is None else list(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        pieces, size = [], 0
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                size += len(piece)
                if size > MAXIMUM_OUTPUT_CHARACTERS:
                    raise SecurityError(f"it gives more than {MAXIMUM_OUTPUT_CHARACTERS} characters")
        except Exception as error:  # a template can fail in any way that Python can
            raise GenerationError(
                f"the chat template cannot render these messages: {error}",
                hint="Check each message's role and content against what the model expects.",
            ) from error
        return "".join(pieces)


def check_messages(messages: Sequence[Message]) -> None:
    """Refuses what is not a conversation.

    Raises:
        GenerationError: there is no message, or one is not a mapping with a role.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise GenerationError(
            f"messages is {messages!r:.80}; valid: a list of messages, at least one",
            hint='For example [{"role": "user", "content": "Hello"}].',
        )
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise GenerationError(f"message {index} is {message!r:.80}; valid: a mapping with a string role")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, which also bounds the operators that make much of little.

    What Jinja's own answers with a value that prints as nothing, an unsafe attribute, is an error here.
    """

    intercepted_binops = frozenset({"*", "**"})

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise SecurityError(f"the attribute {attribute!r} of {type(obj).__name__} is out of its bounds")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not all(abs(value) <= MAXIMUM_POWER for value in (left, right)):
            raise SecurityError(f"a power with an operand above {MAXIMUM_POWER}")
        for repeated, times in ((left, right), (right, left)):
            sized = isinstance(repeated, str | bytes | list | tuple) and isinstance(times, int)
            if sized and len(repeated) * times > MAXIMUM_OUTPUT_CHARACTERS:
                raise SecurityError("a repetition that is too long")
        return super().call_binop(context, operator, left, right)


def _environment() -> jinja2.Environment:
    """The environment that chat templates are written for, as transformers sets it up."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension])
    environment.globals.pop("lipsum", None)  # text of any length
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _tojson
    return environment


def _bounded_range() -> Callable[..., range]:
    """Returns a `range` for one rendering: nested loops without output would not end otherwise."""
    left = MAXIMUM_LOOPS

    def bounded(*arguments: int) -> range:
        nonlocal left
        numbers = range(*arguments)
        left -= len(numbers)
        if left < 0:
            raise SecurityError(f"it loops more than {MAXIMUM_LOOPS} times")
        return numbers

    return bounded


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, unlike Jinja's own filter, which escapes it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _special_tokens(path: Path) -> dict[str, str]:
    """bos_token, eos_token and so on, for templates that name them; empty without the file."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
        tokens = {name: value for name, value in config.items() if name.endswith("_token")}
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    contents = {
        name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()
    }
    return {name: value for name, value in contents.items() if isinstance(value, str)}
