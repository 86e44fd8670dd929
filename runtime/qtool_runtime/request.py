"""One call of an application's, as a record: checked as a whole, then made into streams of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.answer import TAGS, AnswerParser, PlainText
from qtool_runtime.answer_constraint import AnswerConstraint
from qtool_runtime.checks import (
    check_candidates,
    check_deadline,
    check_length,
    check_logprobs,
    check_stop_ids,
    check_vocabulary,
    check_when_full,
)
from qtool_runtime.constraint import Constraint, GrammarCompiler, GrammarConstraint
from qtool_runtime.engine import Session
from qtool_runtime.generate import GenerationResult, MakeRoom, generate
from qtool_runtime.manifest import Generation
from qtool_runtime.prefix_memory import PrefixMemory
from qtool_runtime.prompt import Prompt
from qtool_runtime.sampling import Sampler, SamplingOptions
from qtool_runtime.stream import TextStream
from qtool_runtime.text import StopStrings, Tokenizer
from qtool_runtime.thinking import ThinkingBudget


@dataclass(frozen=True)
class ChatForm:
    """What is known about the form of an answer to a conversation.

    Attributes:
        opened: the prompt ended within reasoning.
        thinking_budget: most tokens of reasoning; None for any number.
        may_reason: reasoning may come before the answer.
        tools: functions that can be called.
        tool_choice: "auto", "required", or the name of the tool to call.
    """

    opened: bool
    thinking_budget: int | None
    may_reason: bool = True
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"


class AnswerOptions(TypedDict, total=False):
    """What can be asked for beside a prompt. None, or leaving it out, means the default.

    `SamplingOptions` says more about the first ten, and in which order they work.
    """

    temperature: float | None
    """0 takes the most likely token, otherwise 0.001 to 100."""
    top_k: int | None
    """Draw among the k most likely tokens; 0 for all."""
    top_p: float | None
    """Draw among the fewest tokens whose probabilities reach this sum; 1 for all."""
    min_p: float | None
    """Leave out tokens less likely than this times the most likely one; default 0."""
    repetition_penalty: float | None
    """Divides positive logits of tokens that were used before, multiplies negative ones; 1 for none."""
    presence_penalty: float | None
    """Is subtracted from logits of tokens that are in the answer; default 0."""
    frequency_penalty: float | None
    """Is subtracted from the logit of a token as often as it is in the answer; default 0."""
    logit_bias: Mapping[int, float] | None
    """Token id -> what is added to its logit."""
    banned_ids: Sequence[int] | None
    """Token ids that are never chosen."""
    seed: int | None
    """Makes sampling repeatable."""
    max_tokens: int | None
    """Most tokens to generate; by default as many as the context holds."""
    stop: str | Sequence[str] | None
    """The text ends before the first of these strings."""
    stop_ids: Sequence[int] | None
    """Token ids that end the answer, beside the model's own end tokens."""
    ignore_eos: bool | None
    """Go on after the model's end tokens."""
    deadline: float | None
    """Most seconds from the request of the first piece to the end, with what the caller does in between; a
    forward pass that has begun is not interrupted."""
    logprobs: int | None
    """Record the log-probability of each token, and of this many alternatives (0 to 20), in
    `TextStream.logprobs`; see `TokenLogprobs`."""
    remember: bool | None
    """Keep keys and values of prompt and answer, so that a prompt that starts like them is read from there on
    (see `prefix_memory.py`); on by default. Off, this answer still makes use of what is known."""
    when_full: str | None
    """What to do when prompt and answer pass the context. "error" (default) refuses a request whose prompt
    and `max_tokens` do; "stop" ends the answer there; "drop_oldest", in a chat, leaves out the oldest turns,
    again and again if need be. Without `max_tokens`, an answer ends with the context under "error" too."""
    speculate: bool | None
    """Guess tokens where the text repeats itself, and read several in one forward pass: quicker for edits and
    summaries. The answer is the same; with onnxruntime's own kernels, but for rounding (`speculation.py`)."""
    json_schema: Mapping[str, Any] | str | bool | None
    """The answer is JSON that matches this schema: a mapping, its JSON text, or True for any JSON. Objects
    have their properties in the order of the schema. At most one of this and the next two; they need the
    extra `structured`. In a chat they concern the answer, not the reasoning before it. An answer that was cut
    off (see `TextStream.stop_reason`) is the beginning of one that matches."""
    regex: str | None
    """The whole answer matches this regular expression, in the syntax of Rust's `regex`: no look-around, no
    back references; without `(?s)`, a dot is any character but a new line."""
    grammar: str | None
    """The answer follows this grammar: Lark text, in llguidance's dialect."""
    candidates: int | None
    """How many answers to draw, 1 to 64, above 1 only with sampling. The prompt is read once for all. The
    stream is the first of them, and `TextStream.candidates` has all: streams of their own, each with its own
    deadline, that can be read in any order."""


GREEDY: Mapping[str, Any] = {}
"""Sampling defaults of a plain continuation: the most likely token."""


def sampling_defaults(generation: Generation) -> Mapping[str, Any]:
    """Returns the sampling defaults of a model's own generation config."""
    return {
        "temperature": generation.temperature if generation.do_sample else 0.0,
        "top_k": generation.top_k,
        "top_p": generation.top_p,
        "repetition_penalty": generation.repetition_penalty,
    }


@dataclass(frozen=True)
class Request:
    """A prompt and everything that was asked for with it; `AnswerOptions` describes the fields.

    Attributes:
        prompt: token ids of shape (count,).
        sampling: how to choose tokens.
        chat: None for a plain continuation.
        make_room: gives a shorter prompt when the context is full; None to end the answer.
    """

    prompt: NDArray[np.int64]
    sampling: SamplingOptions
    chat: ChatForm | None = None
    max_tokens: int | None = None
    stop: str | Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    ignore_eos: bool = False
    deadline: float | None = None
    logprobs: int | None = None
    remember: bool = True
    when_full: str = "error"
    speculate: bool = False
    json_schema: Mapping[str, Any] | str | bool | None = None
    regex: str | None = None
    grammar: str | None = None
    candidates: int = 1
    make_room: MakeRoom | None = None

    @classmethod
    def from_options(
        cls,
        prompt: NDArray[np.int64],
        options: AnswerOptions,
        *,
        default: Mapping[str, Any],
        chat: ChatForm | None = None,
        make_room: MakeRoom | None = None,
    ) -> Request:
        """Joins what was asked for with defaults.

        Args:
            prompt: token ids of shape (count,).
            options: what the caller gave.
            default: sampling options where the caller gave none.
            chat: None for a plain continuation.
            make_room: gives a shorter prompt when the context is full.

        Raises:
            TypeError: there is no such option.
            GenerationError: a sampling option is invalid.
        """
        if unknown := sorted(options.keys() - AnswerOptions.__annotations__.keys()):
            known = ", ".join(AnswerOptions.__annotations__)
            raise TypeError(f"there is no option {unknown[0]!r}; valid: {known}")
        given = {name: value for name, value in options.items() if value is not None}
        names = {field.name for field in fields(SamplingOptions)}
        sampling = {name: value for name, value in given.items() if name in names}
        rest: dict[str, Any] = {name: value for name, value in given.items() if name not in names}
        return cls(prompt, SamplingOptions(**{**default, **sampling}), chat, make_room=make_room, **rest)

    def check(self, context: int, vocab_size: int) -> None:
        """Refuses what no model of this context and vocabulary could do.

        Raises:
            ContextLimitError: prompt and `max_tokens` together pass the context.
            GenerationError: a field is invalid.
        """
        check_when_full(self.when_full, chat=self.chat is not None)
        check_length(len(self.prompt), self.max_tokens, context, cut=self.when_full != "error")
        check_vocabulary(self.sampling, vocab_size)
        check_stop_ids(self.stop_ids)
        check_deadline(self.deadline)
        check_logprobs(self.logprobs)
        check_candidates(self.candidates, self.sampling)

    def start(
        self,
        new_session: Callable[[], Session],
        *,
        memory: PrefixMemory,
        tokenizer: Tokenizer,
        eos_ids: Sequence[int],
        grammars: GrammarCompiler,
        on_end: Callable[[GenerationResult], None] | None = None,
    ) -> TextStream:
        """Returns the stream of the first answer, which knows the others. Nothing runs yet.

        Args:
            new_session: makes an empty session.
            memory: what sessions of this kind have read.
            tokenizer: the model's.
            eos_ids: token ids with which the model ends an answer.
            grammars: the model's.
            on_end: is told the result of each answer; see `TextStream`.

        Raises:
            GenerationError: a stop string, schema or grammar is invalid.
            MissingExtraError: llguidance is needed and not installed.
        """
        prompt = Prompt(self.prompt, memory, answers=self.candidates, remember=self.remember)
        endings = dict.fromkeys(self.stop_ids, "stop")
        if not self.ignore_eos:
            endings |= dict.fromkeys(eos_ids, "eos")
        rules = self._rules()
        grammar = None if rules is None else grammars.compile(rules, endings)
        streams: list[TextStream] = []
        for candidate in reversed(range(self.candidates)):
            streams.insert(
                0,
                self._stream(
                    prompt,
                    candidate,
                    new_session(),
                    tokenizer=tokenizer,
                    endings=endings,
                    grammar=grammar and grammar.copy(),
                    on_end=on_end,
                    others=streams if candidate == 0 else (),
                ),
            )
        return streams[0]

    def _rules(self) -> str | None:
        """Returns the grammar of the answer, if it has to follow one."""
        given = (self.json_schema, self.regex, self.grammar)
        choice = self.chat.tool_choice if self.chat else "auto"
        if choice == "auto" and all(value is None for value in given):
            return None
        from qtool_runtime.grammar import answer_grammar

        return answer_grammar(*given, tools=self.chat.tools if self.chat else (), tool_choice=choice)

    def _stream(
        self,
        prompt: Prompt,
        candidate: int,
        session: Session,
        *,
        tokenizer: Tokenizer,
        endings: Mapping[int, str],
        grammar: GrammarConstraint | None,
        on_end: Callable[[GenerationResult], None] | None,
        others: Sequence[TextStream],
    ) -> TextStream:
        """Joins the parts of one answer."""
        result = GenerationResult(prompt_tokens=len(prompt))
        budget: ThinkingBudget | None = None
        constraint: Constraint | None = grammar
        parser: AnswerParser | PlainText = PlainText()
        if self.chat:
            parser = AnswerParser(opened=self.chat.opened, constrained=grammar is not None)
            if grammar and self.chat.may_reason:
                constraint = AnswerConstraint(grammar, tokenizer, opened=self.chat.opened)
            if self.chat.thinking_budget is not None:
                budget = ThinkingBudget(self.chat.thinking_budget, tokenizer, opened=self.chat.opened)
        token_ids = generate(
            session,
            prompt,
            Sampler(self.sampling, prompt.token_ids, candidate, constraint),
            result,
            max_tokens=self.max_tokens,
            endings=endings,
            deadline=self.deadline,
            logprobs=self.logprobs,
            speculate=self.speculate,
            make_room=self.make_room,
            interject=budget,
        )
        return TextStream(
            session,
            token_ids,
            decoder=tokenizer.new_decoder(visible=TAGS if self.chat else ()),
            stops=StopStrings([self.stop] if isinstance(self.stop, str) else self.stop),
            parser=parser,
            result=result,
            on_end=on_end,
            others=others,
        )
