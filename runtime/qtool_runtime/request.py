"""One call of an application's, as a record: checked as a whole, then made into streams of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.answer import TAGS, AnswerParser, PlainText
from qtool_runtime.checks import (
    check_candidates,
    check_deadline,
    check_length,
    check_logprobs,
    check_vocabulary,
)
from qtool_runtime.generate import GenerationResult, generate
from qtool_runtime.prompt import Prompt
from qtool_runtime.sampling import Sampler, SamplingOptions
from qtool_runtime.session import Session
from qtool_runtime.stream import TextStream
from qtool_runtime.text import StopStrings, Tokenizer
from qtool_runtime.thinking import ThinkingBudget


@dataclass(frozen=True)
class ChatForm:
    """What is known about the form of an answer to a conversation.

    Attributes:
        opened: the prompt ended within reasoning.
        thinking_budget: most tokens of reasoning; None for any number.
    """

    opened: bool
    thinking_budget: int | None


@dataclass(frozen=True)
class Request:
    """A prompt and everything that was asked for with it; see `Model.generate` for the fields.

    Attributes:
        prompt: token ids of shape (count,).
        stop_ids: token ids that end the answer, and the stop reason that each gives.
        chat: None for a plain continuation.
    """

    prompt: NDArray[np.int64]
    options: SamplingOptions
    max_tokens: int | None
    stop: str | Sequence[str]
    stop_ids: Mapping[int, str]
    deadline: float | None
    logprobs: int | None
    candidates: int
    chat: ChatForm | None = None

    def check(self, context: int, vocab_size: int) -> None:
        """Refuses what no model of this context and vocabulary could do.

        Raises:
            ContextLimitError: prompt and `max_tokens` together pass the context.
            GenerationError: a field is invalid.
        """
        check_length(len(self.prompt), self.max_tokens, context)
        check_vocabulary(self.options, vocab_size)
        check_deadline(self.deadline)
        check_logprobs(self.logprobs)
        check_candidates(self.candidates, self.options)

    def start(self, new_session: Callable[[], Session], tokenizer: Tokenizer) -> TextStream:
        """Returns the stream of the first answer, which knows the others. Nothing runs yet.

        Raises:
            GenerationError: a stop string is invalid.
        """
        prompt = Prompt(self.prompt, self.candidates)
        streams: list[TextStream] = []
        for candidate in reversed(range(self.candidates)):
            first = candidate == 0
            stream = self._stream(prompt, candidate, new_session(), tokenizer, streams if first else ())
            streams.insert(0, stream)
        return streams[0]

    def _stream(
        self,
        prompt: Prompt,
        candidate: int,
        session: Session,
        tokenizer: Tokenizer,
        others: Sequence[TextStream],
    ) -> TextStream:
        """Joins the parts of one answer."""
        result = GenerationResult(prompt_tokens=len(prompt))
        budget: ThinkingBudget | None = None
        parser: AnswerParser | PlainText = PlainText()
        if self.chat:
            parser = AnswerParser(opened=self.chat.opened)
            if self.chat.thinking_budget is not None:
                budget = ThinkingBudget(self.chat.thinking_budget, tokenizer, opened=self.chat.opened)
        token_ids = generate(
            session,
            prompt,
            Sampler(self.options, prompt.token_ids, candidate),
            result,
            max_tokens=self.max_tokens,
            stop_ids=self.stop_ids,
            deadline=self.deadline,
            logprobs=self.logprobs,
            interject=budget,
        )
        decoder = tokenizer.new_decoder(visible=TAGS if self.chat else ())
        stops = StopStrings([self.stop] if isinstance(self.stop, str) else self.stop)
        return TextStream(
            session,
            token_ids,
            decoder=decoder,
            stops=stops,
            parser=parser,
            result=result,
            others=others,
        )
