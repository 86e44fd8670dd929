"""Loading an artifact, and the two calls that an application makes: `generate` and `chat`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.compatibility import check_compatibility
from qtool_runtime.errors import ContextLimitError, GenerationError
from qtool_runtime.generate import GenerationResult, generate
from qtool_runtime.graph import LoadedGraph, open_graph
from qtool_runtime.integrity import check_files
from qtool_runtime.manifest import Manifest, read
from qtool_runtime.sampling import Sampler, SamplingOptions
from qtool_runtime.session import Session
from qtool_runtime.stream import TextStream
from qtool_runtime.text import StopStrings, Tokenizer
from qtool_runtime.threads import check_threads

if TYPE_CHECKING:
    from qtool_runtime.chat import ChatTemplate


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    provider: str | None = None,
    context: int | None = None,
    verify: bool = False,
) -> Model:
    """Loads an artifact.

    Everything that can be known from the manifest is checked before ONNX Runtime reads a weight.

    Args:
        path: the folder that `qtool build` wrote.
        threads: CPU threads; None for the CPUs that affinity and container limits leave to this process.
        provider: "cpu", "cuda", "directml" or "webgpu"; None for the one that the artifact was built for.
            There is no fallback to another one.
        context: longest prompt and answer together, in tokens; None for what the artifact was planned for.
        verify: also compare the SHA-256 of every file, and refuse unknown files. Sizes are always compared.

    Raises:
        ArtifactError: the folder is not a whole artifact.
        MissingExtraError: onnxruntime is not installed.
        IncompatibleRuntimeError: the installed onnxruntime cannot run it.
        ContextLimitError: `context` is longer than planned.
        GenerationError: `threads` or `context` is not a count.
    """
    folder = Path(path)
    manifest = read(folder)
    check_files(folder, manifest, hashes=verify, extra=verify)
    threads = check_threads(threads)
    context = _check_context(context, manifest.context)
    chosen = check_compatibility(manifest, provider)
    graph = open_graph(folder, manifest, chosen, threads, context)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    return Model(folder, manifest, graph, tokenizer, provider=chosen.name, threads=threads)


class Model:
    """A loaded artifact. Its generations are independent of each other and may run at the same time.

    Made by `load`. Close it, or use it in a `with` statement, to free the weights.

    Attributes:
        manifest: the artifact's contract.
        tokenizer: its tokenizer.
        provider: where it runs, such as "cpu".
        threads: CPU threads in use.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        graph: LoadedGraph,
        tokenizer: Tokenizer,
        *,
        provider: str,
        threads: int,
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.provider = provider
        self.threads = threads
        self._folder = folder
        self._graph: LoadedGraph | None = graph
        self.context = graph.context

    def generate(
        self,
        prompt: str | Sequence[int] | NDArray[np.int64],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
    ) -> TextStream:
        """Continues a prompt. Greedy unless asked otherwise: the same prompt gives the same text.

        Everything is checked here; the model starts when the first piece is asked for.

        Args:
            prompt: text, or token ids.
            max_tokens: most tokens to generate; None for as many as the context holds.
            temperature: see `SamplingOptions`, as for the next five.
            top_k: see `SamplingOptions`.
            top_p: see `SamplingOptions`.
            min_p: see `SamplingOptions`.
            repetition_penalty: see `SamplingOptions`.
            seed: see `SamplingOptions`.
            stop: the text ends before the first of these strings.
            stop_ids: token ids that end the answer, beside the model's own end tokens.
            ignore_eos: go on after the model's end tokens.

        Returns:
            Pieces of text, as an iterator; `.read()` gives all of it at once.

        Raises:
            ContextLimitError: prompt and `max_tokens` together pass the context.
            GenerationError: an option is invalid, or the model is closed.
        """
        options = SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        endings = self._endings(stop_ids, ignore_eos)
        return self._start(self._prompt_tokens(prompt), options, max_tokens, stop, endings)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
    ) -> TextStream:
        """Answers a conversation. Options that are None come from the model's own generation config.

        Args:
            messages: {"role": …, "content": …} each; see `ChatTemplate.render`.
            tools: JSON schemas of functions that the model may call.
            enable_thinking: for models that can think first; None leaves it to the template.
            max_tokens: as for `generate`, like all that follow.
            temperature: 0 for the most likely token; the model's repetition penalty still applies.
            top_k: see `SamplingOptions`.
            top_p: see `SamplingOptions`.
            min_p: see `SamplingOptions`.
            repetition_penalty: see `SamplingOptions`.
            seed: see `SamplingOptions`.
            stop: the text ends before the first of these strings.
            stop_ids: token ids that end the answer, beside the model's own end tokens.
            ignore_eos: go on after the model's end tokens.

        Raises:
            ContextLimitError: prompt and `max_tokens` together pass the context.
            GenerationError: an option or message is invalid, or there is no chat template.
        """
        default = self.manifest.generation
        options = SamplingOptions(
            temperature=_first(temperature, default.temperature if default.do_sample else 0.0),
            top_k=_first(top_k, default.top_k),
            top_p=_first(top_p, default.top_p),
            min_p=min_p,
            repetition_penalty=_first(repetition_penalty, default.repetition_penalty),
            seed=seed,
        )
        endings = self._endings(stop_ids, ignore_eos)
        prompt = self.chat_template.render(messages, tools=tools, enable_thinking=enable_thinking)
        tokens = np.array(self.tokenizer.encode(prompt, add_special_tokens=False), np.int64)
        return self._start(tokens, options, max_tokens, stop, endings)

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
        if self._graph is None:
            raise GenerationError("the model is closed", hint="Load it again.")
        return Session(self._graph)

    def close(self) -> None:
        """Starts no more generations. The weights are freed when those in progress have ended."""
        self._graph = None

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
        tokens = np.asarray(prompt)
        if tokens.ndim != 1 or (tokens.size and not np.issubdtype(tokens.dtype, np.integer)):
            raise GenerationError(f"the prompt is {prompt!r:.80}; valid: text, or a sequence of token ids")
        outside = tokens[(tokens < 0) | (tokens >= self.manifest.model.vocab_size)]
        if outside.size:
            raise GenerationError(
                f"the prompt has the token id {outside[0]}; valid: 0 to {self.manifest.model.vocab_size - 1}"
            )
        return tokens.astype(np.int64)

    def _endings(self, stop_ids: Sequence[int], ignore_eos: bool) -> dict[int, str]:
        """Token ids that end the answer, with the stop reason that each gives."""
        eos = () if ignore_eos else self.manifest.generation.eos_token_ids
        return dict.fromkeys(_check_ids(stop_ids), "stop") | dict.fromkeys(eos, "eos")

    def _start(
        self,
        prompt: NDArray[np.int64],
        options: SamplingOptions,
        max_tokens: int | None,
        stop: str | Sequence[str],
        endings: Mapping[int, str],
    ) -> TextStream:
        """Checks what is left to check, and joins the parts of a generation."""
        session = self.new_session()
        _check_length(len(prompt), max_tokens, session.context)
        stops = StopStrings([stop] if isinstance(stop, str) else stop)
        result = GenerationResult(prompt_tokens=len(prompt))
        sampler = Sampler(options, prompt)
        token_ids = generate(session, prompt, sampler, result, max_tokens=max_tokens, stop_ids=endings)
        return TextStream(session, token_ids, self.tokenizer.new_decoder(), stops, result)


Value = TypeVar("Value")


def _first(chosen: Value | None, default: Value) -> Value:
    return default if chosen is None else chosen


def _check_context(context: int | None, planned: int) -> int:
    if context is None:
        return planned
    if not isinstance(context, int) or isinstance(context, bool) or context < 1:
        raise GenerationError(f"context is {context!r}; valid: None, or 1 to {planned} tokens")
    if context > planned:
        raise ContextLimitError(
            f"context is {context} tokens; the artifact was planned for at most {planned}",
            hint="Ask for less, or build the artifact with a longer context.",
        )
    return context


def _check_length(prompt: int, max_tokens: int | None, context: int) -> None:
    """Refuses a generation that cannot fit, before any work. An answer has at least one token."""
    if max_tokens is not None and (
        not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1
    ):
        raise GenerationError(f"max_tokens is {max_tokens!r}; valid: None, or a count from 1")
    if prompt == 0:
        raise GenerationError("the prompt has no tokens", hint="Give at least one.")
    if prompt + (max_tokens or 1) > context:
        raise ContextLimitError(
            f"the prompt has {prompt} tokens and max_tokens is {max_tokens}; together at most {context} fit",
            hint="Shorten the prompt, lower max_tokens, or build the artifact with a longer context.",
        )


def _check_ids(stop_ids: Sequence[int]) -> Sequence[int]:
    for token in stop_ids:
        if not isinstance(token, int | np.integer) or isinstance(token, bool) or token < 0:
            raise GenerationError(f"a stop id is {token!r}; valid: a token id, 0 or more")
    return stop_ids
