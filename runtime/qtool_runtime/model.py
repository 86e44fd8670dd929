"""A loaded artifact, and the calls that an application makes: `generate`, `chat` and their relatives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.answers import Answers
from qtool_runtime.checks import check_batch, check_token_ids
from qtool_runtime.constraint import GrammarCompiler
from qtool_runtime.engine import Engine, Session
from qtool_runtime.errors import GenerationError
from qtool_runtime.generate import GenerationResult
from qtool_runtime.health import PROMPT, HealthReport, check_health
from qtool_runtime.manifest import Manifest
from qtool_runtime.metrics import Metrics
from qtool_runtime.request import GREEDY, AnswerOptions, Request, sampling_defaults
from qtool_runtime.saved_prefix import PrefixFiles, SavedPrefix, read_text
from qtool_runtime.stream import TextStream
from qtool_runtime.text import Tokenizer

if TYPE_CHECKING:
    from qtool_runtime.chat import ChatTemplate
    from qtool_runtime.chat_request import ChatRequests

DEFAULT_BATCH = 4
"""Answers in progress at the same time. More gain little on a few cores, and each has a KV cache as long as
the longest."""


class Model:
    """A loaded artifact. Its generations are independent of each other and may run at the same time.

    Made by `load`. Close it, or use it in a `with` statement, to free the weights.

    Attributes:
        manifest: the artifact's contract.
        tokenizer: its tokenizer.
        engine: what runs it: "onnxruntime" or "genai".
        provider: where it runs, such as "cpu".
        threads: CPU threads in use.
        kernels: what computes matrix products and attention; `.name` is "onnxruntime" for its own kernels,
            else an instruction set of the package qtool-kernels, and `.reason` says why.
        context: longest prompt and answer together, in tokens.
        metrics: what all answers so far took together.
        prefix_memory: keys and values of what its generations have read.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        engine: Engine,
        tokenizer: Tokenizer,
        prefix_files: PrefixFiles,
        *,
        on_answer: Callable[[GenerationResult], None] | None = None,
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.prefix_memory = prefix_files.memory
        self.engine = engine.name
        self.provider = engine.provider
        self.threads = engine.threads
        self.kernels = engine.kernels
        self.context = engine.context
        self._folder = folder
        self._prefix_files = prefix_files
        self._engine: Engine | None = engine
        self._grammars = GrammarCompiler(tokenizer, manifest.model.vocab_size)
        self.metrics = Metrics(engine.kernels.name)
        self._on_answer = on_answer

    def generate(
        self, prompt: str | Sequence[int] | NDArray[np.int64], **options: Unpack[AnswerOptions]
    ) -> TextStream:
        """Continues a prompt. Greedy unless asked otherwise: the same prompt gives the same text.

        Everything is checked here; the model starts when the first piece is asked for.

        Args:
            prompt: text, or token ids.
            options: see `AnswerOptions`.

        Returns:
            Pieces of text, as an iterator; `.read()` gives all of it at once.

        Raises:
            ContextLimitError: prompt and `max_tokens` together pass the context.
            GenerationError: an option is invalid, or the model is closed.
            MissingExtraError: the answer has to follow a grammar, and llguidance is not installed.
        """
        return self._start([self._plain_request(prompt, options)])[0]

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int] | NDArray[np.int64]],
        *,
        at_once: int = DEFAULT_BATCH,
        **options: Unpack[AnswerOptions],
    ) -> Answers:
        """Continues several prompts together: each forward pass extends all answers in progress by a token.

        The answers are those that the prompts get alone. Drafts are not read (`speculate`), and the deadline
        is each answer's own. With a graph or a device that cannot read several sequences in one pass, the
        answers are the same and take as long as one after the other.

        Args:
            prompts: text or token ids each, of any lengths.
            at_once: answers in progress at the same time; their KV caches are as long as the longest.
            options: see `AnswerOptions`; the same for all. `candidates` has to be 1.

        Raises:
            ContextLimitError: a prompt and `max_tokens` together pass the context.
            GenerationError: an option is invalid, there is no prompt, or the model is closed.
        """
        return self._start([self._plain_request(prompt, options) for prompt in prompts], at_once)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | None = None,
        enable_thinking: bool | None = None,
        thinking_budget: int | None = None,
        **options: Unpack[AnswerOptions],
    ) -> TextStream:
        """Answers a conversation. Options that are not given come from the model's own generation config.

        Iterating over the result yields the text of the answer; reasoning and tool calls are apart from it.
        Names of control tokens within messages and tools are plain text to the model.

        Args:
            messages: {"role": …, "content": …} each; see `ChatTemplate.render`, and `TextStream.message`.
            tools: JSON schemas of functions that the model may call, each with a function name. Calls are
                looked for in any answer, for a model may know functions without being told.
            tool_choice: "auto" (default) leaves it to the model whether to call; "required" makes the answer
                one call or more; the name of a tool makes it one call of that. Required calls always parse,
                and their arguments match the schema. With "auto" and one of `json_schema`, `regex` and
                `grammar`, the answer follows that or is calls. "auto" alone needs no extra.
            enable_thinking: for models that can think first; None leaves it to the template.
            thinking_budget: most tokens of reasoning. When they are used up, the closing tag is put into the
                answer, and the model goes on from there. 0 for no thinking, None for any number.
            options: see `AnswerOptions`. Reasoning and tags count for `max_tokens`; a stop string ends
                reasoning too; at temperature 0 the model's own repetition penalty still applies.

        Raises:
            ContextLimitError: prompt and `max_tokens` together pass the context.
            GenerationError: an option, message or tool is invalid, or there is no chat template.
            MissingExtraError: the answer has to follow a grammar, and llguidance is not installed.
        """
        request = self._chat_requests.make(
            messages,
            options,
            tools=tools,
            tool_choice=tool_choice,
            enable_thinking=enable_thinking,
            thinking_budget=thinking_budget,
        )
        return self._start([request])[0]

    def chat_batch(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | None = None,
        enable_thinking: bool | None = None,
        thinking_budget: int | None = None,
        at_once: int = DEFAULT_BATCH,
        **options: Unpack[AnswerOptions],
    ) -> Answers:
        """Answers several conversations together: `chat` as `generate_batch` does it.

        Raises:
            ContextLimitError: a prompt and `max_tokens` together pass the context.
            GenerationError: an option, message or tool is invalid, there is no conversation, or there is no
                chat template.
        """
        requests = [
            self._chat_requests.make(
                messages,
                options,
                tools=tools,
                tool_choice=tool_choice,
                enable_thinking=enable_thinking,
                thinking_budget=thinking_budget,
            )
            for messages in conversations
        ]
        return self._start(requests, at_once)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The artifact's chat template, read when it is first needed.

        Raises:
            GenerationError: it has none.
        """
        from qtool_runtime.chat import ChatTemplate  # jinja2 is of no use to a base model

        return ChatTemplate.from_folder(self._folder)

    def new_session(self) -> Session:
        """Returns an empty session for forward passes without the generation loop (scoring, evaluation).

        Raises:
            GenerationError: the model is closed.
        """
        return self._sessions(1)()

    def health(
        self,
        *,
        max_time_to_first_token: float | None = None,
        min_decode_rate: float | None = None,
        max_resident_bytes: float | None = None,
    ) -> HealthReport:
        """Generates a few tokens twice, and judges whether the model is fit to answer.

        Neither run counts in `metrics`. Without thresholds, only a broken artifact or installation fails.

        Args:
            max_time_to_first_token: seconds for a prompt of about ten tokens.
            min_decode_rate: tokens per second.
            max_resident_bytes: memory of the whole process.

        Raises:
            GenerationError: a threshold is invalid, or the model is closed.
        """
        prompt = np.array(self.tokenizer.encode(PROMPT), np.int64)
        return check_health(
            self.new_session,
            prompt,
            max_time_to_first_token=max_time_to_first_token,
            min_decode_rate=min_decode_rate,
            max_resident_bytes=max_resident_bytes,
        )

    def save_prefix(
        self,
        path: str | Path,
        prompt: str | Sequence[int] | NDArray[np.int64] | Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
    ) -> int:
        """Writes keys and values of a prompt to a file, for `load_prefix` in a later process.

        What the prefix memory does not know of it is read first. Of a prompt that passes the context, the
        tokens that fit are written.

        Args:
            path: the file; one that is there is replaced as a whole.
            prompt: text, token ids, or a conversation (an empty list is one that has not begun). Of that, the
                file holds the messages, and the tokens that it starts with whatever its user says next.
            tools: see `chat`; for a conversation.
            enable_thinking: likewise.

        Returns:
            How many tokens the file is about.

        Raises:
            GenerationError: the prompt is empty or malformed, or the engine does not give keys and values.
            KvFileError: the messages are no plain data, or the file cannot be written.
        """
        messages: Sequence[Any] = ()
        if not isinstance(prompt, str | np.ndarray) and all(isinstance(item, Mapping) for item in prompt):
            from qtool_runtime.conversation import encode_opening  # as below

            messages = list(prompt)
            tokens = encode_opening(
                self.chat_template, self.tokenizer, messages, tools=tools, enable_thinking=enable_thinking
            )
        else:
            tokens = self._prompt_tokens(prompt)  # type: ignore[arg-type]
        tokens = tokens[: self.context]
        self._prefix_files.save(Path(path), tokens, messages, self.new_session)
        return len(tokens)

    def load_prefix(self, path: str | Path) -> SavedPrefix:
        """Takes a file of `save_prefix` into the prefix memory, as much of its start as fits there.

        Returns:
            Its tokens, and the conversation to go on with.

        Raises:
            GenerationError: the model was loaded without a prefix memory.
            KvFileError: the file is malformed, damaged, or of another model, provider or version.
        """
        return self._prefix_files.load(Path(path))

    @cached_property
    def baked_prompt(self) -> str | None:
        """The system prompt that was baked into the artifact: with it, a conversation starts sooner.

        Raises:
            ArtifactError: its text cannot be read.
        """
        baked = self.manifest.baked_prompt
        return None if baked is None else read_text(self._folder / baked.text_file)

    def forget(self) -> None:
        """Drops the keys and values that were kept of earlier prompts and answers, the baked one left out."""
        self.prefix_memory.forget()

    def close(self) -> None:
        """Starts no more generations. The weights are freed when those in progress have ended."""
        self._engine = None
        self.forget()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prompt_tokens(self, prompt: str | Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Encodes text, or checks token ids: int64 of shape (count,)."""
        if isinstance(prompt, str):
            return np.array(self.tokenizer.encode(prompt), np.int64)
        return check_token_ids(prompt, self.manifest.model.vocab_size)

    def _plain_request(
        self, prompt: str | Sequence[int] | NDArray[np.int64], options: AnswerOptions
    ) -> Request:
        return Request.from_options(self._prompt_tokens(prompt), options, default=GREEDY)

    @cached_property
    def _chat_requests(self) -> ChatRequests:
        from qtool_runtime.chat_request import ChatRequests  # as below

        default = sampling_defaults(self.manifest.generation)
        return ChatRequests(self.chat_template, self.tokenizer, self.context, default)

    def _start(self, requests: Sequence[Request], at_once: int = 1) -> Answers:
        """Checks requests against this model, and prepares their streams."""
        check_batch(len(requests), at_once, max((request.candidates for request in requests), default=1))
        for request in requests:
            request.check(self.context, self.manifest.model.vocab_size)
        together = max(requests[0].candidates, min(at_once, len(requests)))
        new_session = self._sessions(together)
        eos_ids = self.manifest.generation.eos_token_ids
        streams = [
            request.start(
                new_session,
                memory=self.prefix_memory,
                tokenizer=self.tokenizer,
                eos_ids=eos_ids,
                grammars=self._grammars,
                on_end=self._ended,
            )
            for request in requests
        ]
        return Answers(streams, at_once)

    def _sessions(self, together: int) -> Callable[[], Session]:
        """Returns a maker of sessions; so many of them will be read together."""
        if self._engine is None:
            raise GenerationError("the model is closed", hint="Load it again.")
        new_session = self._engine.new_sessions(together)

        def new_counted_session() -> Session:
            session = new_session()
            self.metrics.watch(session)
            return session

        return new_counted_session

    def _ended(self, result: GenerationResult) -> None:
        """Counts an answer, and tells the application."""
        self.metrics.add(result)
        if self._on_answer is None:
            return
        try:
            self._on_answer(result)
        except Exception:
            logging.getLogger("qtool_runtime").exception("on_answer failed")
