"""What a chat answer is made of: reasoning, text and tool calls, told apart while the text comes in.

The form is Qwen's: `<think>…</think>` before the answer, and `<tool_call>{json}</tool_call>` in it. Tags are
looked for in the text, so it makes no difference whether a tokenizer has them as one token or as several.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qtool_runtime.tools import MalformedToolCall, ToolCall, parse_tool_call

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
TAGS = (THINK, END_THINK, CALL, END_CALL)


@dataclass(frozen=True)
class ReasoningText:
    """A piece of what the model thought before it answered."""

    text: str


@dataclass(frozen=True)
class AnswerText:
    """A piece of the answer."""

    text: str


Event = ReasoningText | AnswerText | ToolCall | MalformedToolCall


class PlainText:
    """Takes all text for the answer, for prompts without a chat template."""

    def push(self, text: str) -> Iterator[Event]:
        """Yields the text, unless it is empty."""
        if text:
            yield AnswerText(text)

    def finish(self) -> Iterator[Event]:
        """Yields nothing: nothing is kept back."""
        yield from ()


class AnswerParser:
    """Sorts the text of an answer into events. How the text is cut into pieces makes no difference.

    - Reasoning is what stands between `<think>`, if the text starts with it, and `</think>`; newlines at both
      ends, and after the closing tag, belong to neither reasoning nor answer. Nothing else counts as
      reasoning, and tool calls within it are not calls.
    - A tool call ends at the first `</tool_call>`. One that another `<tool_call>` or the end of the text
      interrupts is malformed. White space around calls is not part of the answer, except between two parts
      of it.

    Text is kept back only while it may be part of a tag, white space until it is known what follows.

    Args:
        opened: the prompt ended with `<think>`, so that the text starts with reasoning.
        constrained: the answer follows a grammar. Then it is either calls from its start on, which end only
            where they are whole, or it has none: tags are found in strings of JSON too.
    """

    def __init__(self, *, opened: bool = False, constrained: bool = False) -> None:
        self._constrained = constrained
        self._held = ""
        self._skip = "\n" if opened else ""  # characters to leave out at the start of what is held
        self._gap = ""  # white space around calls, part of the answer if more text follows
        self._spoken = False  # whether there was answer text
        self._state = self._reason if opened else self._start

    @property
    def reasoning(self) -> bool:
        """Whether the text is within reasoning now."""
        return self._state == self._reason

    @property
    def started(self) -> bool:
        """Whether it is known that the text starts with reasoning, or that it does not."""
        return self._state != self._start

    def push(self, text: str) -> Iterator[Event]:
        """Yields what `text` completes."""
        self._held += text
        yield from self._run(final=False)

    def finish(self) -> Iterator[Event]:
        """Yields what was kept back, when the text has ended."""
        yield from self._run(final=True)

    def _run(self, final: bool) -> Iterator[Event]:
        """Lets one state after the other take its part of the held text, until that needs more text."""
        state: Callable[[bool], Iterator[Event]] | None = None
        while state != self._state:
            state = self._state
            yield from state(final)

    def _start(self, final: bool) -> Iterator[Event]:
        text = self._held.lstrip()
        if text.startswith(THINK):
            self._held, self._skip, self._state = text[len(THINK) :], "\n", self._reason
        elif final or not THINK.startswith(text):
            self._state = self._answer
        yield from ()

    def _reason(self, final: bool) -> Iterator[Event]:
        self._held = self._held.lstrip(self._skip) if self._skip else self._held
        before, found, after = self._held.partition(END_THINK)
        if not found and not final:
            before = before[: len(before) - _possible_start(before, END_THINK)]
        before = before.rstrip("\n")
        if before:
            self._skip = ""
            yield ReasoningText(before)
        if found:
            self._held, self._skip, self._state = after, "\n", self._answer
        else:
            self._held = "" if final else self._held[len(before) :]

    def _answer(self, final: bool) -> Iterator[Event]:
        self._held = self._held.lstrip(self._skip) if self._skip else self._held
        if self._constrained and not CALL.startswith(self._held[: len(CALL)]):
            self._state = self._verbatim
            return
        before, found, after = self._held.partition(CALL)
        if not found and not final:
            before = before[: len(before) - _possible_start(before, CALL)]
        text = before if final and not found else before.rstrip()
        if text:
            self._skip = ""
            yield AnswerText((self._gap if self._spoken else "") + text)
            self._gap, self._spoken = "", True
        if found:
            self._gap = self._gap or before[len(text) :]
            self._held, self._skip, self._state = after, "", self._call
        else:
            self._held = self._held[len(text) :]

    def _verbatim(self, final: bool) -> Iterator[Event]:
        if self._held:
            yield AnswerText(self._held)
        self._held = ""

    def _call(self, final: bool) -> Iterator[Event]:
        tag = CALL
        while tag == CALL:
            ends = self._call_ends()
            if not ends and not final:
                return
            place, tag = min(ends, default=(len(self._held), ""))
            raw, self._held = self._held[:place], self._held[place + len(tag) :]
            yield parse_tool_call(raw) if tag == END_CALL else MalformedToolCall(raw, f"it has no {END_CALL}")
        self._state = self._after_call

    def _call_ends(self) -> list[tuple[int, str]]:
        """Returns where the call may end in the held text, and with which tag."""
        if self._constrained:
            places = [match.start() for match in re.finditer(END_CALL, self._held)]
            whole = [place for place in places if isinstance(parse_tool_call(self._held[:place]), ToolCall)]
            return [(place, END_CALL) for place in whole]
        return [(self._held.find(tag), tag) for tag in (END_CALL, CALL) if tag in self._held]

    def _after_call(self, final: bool) -> Iterator[Event]:
        text = self._held.lstrip()
        if text or final:
            self._gap = self._gap or self._held[: len(self._held) - len(text)]
            self._held, self._state = text, self._answer
        yield from ()


def _possible_start(text: str, tag: str) -> int:
    """Length of the longest end of `text` that may be the start of `tag`."""
    lengths = range(min(len(tag) - 1, len(text)), 0, -1)
    return next((length for length in lengths if tag.startswith(text[-length:])), 0)
