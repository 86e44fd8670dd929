"""The object that a generation hands to the application: an answer as it comes, and what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Any

from qtool_runtime.answer import AnswerParser, AnswerText, Event, PlainText, ReasoningText
from qtool_runtime.answers import Answers
from qtool_runtime.asynchronous import steps_in_thread
from qtool_runtime.engine import Cancelled, Session
from qtool_runtime.generate import GenerationResult
from qtool_runtime.logprobs import TokenLogprobs
from qtool_runtime.sole_use import SoleUse
from qtool_runtime.text import StopStrings, StreamDecoder
from qtool_runtime.tools import MalformedToolCall, ToolCall


class TextStream(Iterator[str]):
    """An answer, piece by piece. Nothing runs until the first piece is asked for.

    Iterating yields the text of the answer, what a user should read. `events` also yields reasoning and tool
    calls as they come; they are collected in `reasoning` and `tool_calls` either way. Only `Model.chat` looks
    for them: all text of `Model.generate` is answer.

    Iterate over it from one thread; `cancel` may be called from any. Leaving it half-way frees its KV cache
    when the stream is closed or collected.

    Args:
        session: the tokens in progress; the stream closes it at its end.
        token_ids: the generation loop over that session; the stream closes it too.
        decoder: turns ids into text.
        stops: ends the text, reasoning included.
        parser: sorts the text into events.
        result: what the loop fills in.
        on_end: is told the result of an answer that began, once it has ended and before its cache is freed.
        others: further answers to the same prompt.
    """

    def __init__(
        self,
        session: Session,
        token_ids: Generator[int, None, None],
        *,
        decoder: StreamDecoder,
        stops: StopStrings,
        parser: AnswerParser | PlainText,
        result: GenerationResult,
        on_end: Callable[[GenerationResult], None] | None = None,
        others: Sequence[TextStream] = (),
    ) -> None:
        self._session = session
        self._result = result
        self._others = tuple(others)
        self._sole_use = SoleUse("answer")
        self._past: list[Event] = []
        self._ready: deque[Event] = deque()
        self._steps = _steps(
            session, token_ids, decoder=decoder, stops=stops, parser=parser, result=result, on_end=on_end
        )

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        """Returns the next piece of the answer; never empty, and never half a character.

        Raises:
            GenerationError: the generation failed.
        """
        for event in self.events():
            if isinstance(event, AnswerText):
                return event.text
        raise StopIteration

    def events(self) -> Iterator[Event]:
        """Yields what comes next: `ReasoningText`, `AnswerText`, `ToolCall`, `MalformedToolCall`.

        Raises:
            GenerationError: the generation failed.
        """
        alive = True
        while alive:
            yield from self.pending()
            alive = self.step()
        yield from self.pending()

    async def events_async(self) -> AsyncIterator[Event]:
        """As `events`, without blocking the event loop: forward passes run in its thread pool.

        Cancelling the task that iterates ends the generation within one forward pass.

        Raises:
            GenerationError: the generation failed.
        """
        for event in self.pending():
            yield event
        async for _ in steps_in_thread(self.step, self.cancel, self.close):
            for event in self.pending():
                yield event

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yields pieces of the answer's text, as iterating does; see `events_async`."""
        async for event in self.events_async():
            if isinstance(event, AnswerText):
                yield event.text

    async def read_async(self) -> str:
        """Runs to the end without blocking the event loop, and returns the whole text of the answer."""
        async for _ in self.events_async():
            pass
        return self.text

    def pending(self) -> Iterator[Event]:
        """Yields the events of steps so far that have not been yielded yet."""
        while self._ready:
            yield self._ready.popleft()

    def step(self) -> bool:
        """Generates one more token; `pending` has what it completes. The last step may only end the answer.

        Returns:
            Whether the answer went on: False once it has ended.

        Raises:
            GenerationError: the generation failed.
        """
        with self._sole_use:
            events = next(self._steps, None)
            self._past.extend(events or ())
            self._ready.extend(events or ())
        return events is not None

    def read(self) -> str:
        """Runs to the end and returns the whole text of the answer."""
        for _ in self.events():
            pass
        return self.text

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(event.text for event in self._past if isinstance(event, AnswerText))

    @property
    def reasoning(self) -> str:
        """What the model thought so far before the answer; empty if it did not."""
        return "".join(event.text for event in self._past if isinstance(event, ReasoningText))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Tool calls so far."""
        return tuple(event for event in self._past if isinstance(event, ToolCall))

    @property
    def malformed_tool_calls(self) -> tuple[MalformedToolCall, ...]:
        """What was meant as a tool call so far and cannot be made, with the reason."""
        return tuple(event for event in self._past if isinstance(event, MalformedToolCall))

    def message(self) -> dict[str, Any]:
        """Returns the answer so far as a message, to go on with the conversation.

        It has "reasoning_content" and "tool_calls" where there are any. Malformed calls are not in it.
        """
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return message

    @property
    def candidates(self) -> Answers:
        """All answers to the prompt that were asked for; this one is the first."""
        return Answers((self, *self._others), at_once=1 + len(self._others))

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids so far, without the one that ended the answer; with those of tags and of a stop string."""
        return tuple(self._result.token_ids)

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """A record for each of `token_ids`, if they were asked for."""
        return tuple(self._result.logprobs)

    @property
    def stop_reason(self) -> str | None:
        """Why the answer ended (see `GenerationResult`), or None while it goes on."""
        return self._result.stop_reason

    @property
    def stats(self) -> GenerationResult:
        """Counts and times."""
        return self._result

    def cancel(self) -> None:
        """Ends the generation from any thread: a running forward pass stops, and so does the iteration."""
        self._session.cancel()

    def close(self) -> None:
        """Ends the generation, from the iterating thread, and frees its KV cache."""
        with self._sole_use:
            self._steps.close()
        if self._result.stop_reason is None:  # closed before its start
            self._result.stop_reason = "cancelled"
        self._session.close()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _steps(
    session: Session,
    token_ids: Generator[int, None, None],
    *,
    decoder: StreamDecoder,
    stops: StopStrings,
    parser: AnswerParser | PlainText,
    result: GenerationResult,
    on_end: Callable[[GenerationResult], None] | None,
) -> Generator[tuple[Event, ...], None, None]:
    """Each token's events. Not in `TextStream`, so that a forgotten stream is freed at once (no cycle)."""
    try:
        try:
            for token in token_ids:
                yield tuple(parser.push(stops.push(decoder.push(token))))
                if stops.found:
                    break
            else:
                yield tuple(parser.push(stops.push(decoder.finish()) + stops.finish()))
            if stops.found:
                result.stop_reason = "stop"
        except Cancelled:
            result.stop_reason = "cancelled"
        yield tuple(parser.finish())
    except Exception:
        result.stop_reason = "error"
        raise
    finally:
        result.stop_reason = result.stop_reason or "cancelled"
        token_ids.close()
        try:
            if on_end is not None:
                on_end(result)
        finally:
            session.close()
