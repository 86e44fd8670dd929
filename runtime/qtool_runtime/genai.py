"""The engine "genai": forward passes by onnxruntime-genai, under the same generation loop as ONNX Runtime's.

Only its `Generator` is used, and of that only reading tokens, the last row of logits, and going back. Three
things about it (0.12.2 to 0.18) shape this file. It holds Python's interpreter lock during a forward pass, so
that no other thread runs and nothing can interrupt it: prompts are read in small pieces. With a KV cache that
past and present share it fills memory for the longest text at once: the cache is not shared. And its
configuration file can name libraries to load: the artifact's has to be the one that the manifest implies.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.compatibility import check_compatibility, import_onnxruntime, parse_version
from qtool_runtime.engine import Cancelled, DeadlinePassed, EngineOptions
from qtool_runtime.errors import ArtifactError, GenerationError, IncompatibleRuntimeError, MissingExtraError
from qtool_runtime.genai_config import FILE_NAME, genai_config
from qtool_runtime.kernels import AUTO, OFF, Kernels, own_kernels
from qtool_runtime.kv_cache import CacheLayout, Snapshot, check_room, check_truncation
from qtool_runtime.manifest import Manifest
from qtool_runtime.sole_use import SoleUse
from qtool_runtime.threads import Threads

PREFILL_CHUNK = 64
"""Tokens of a prompt per forward pass. Longer pieces are no quicker (a 0.5B model read 512 tokens in pieces
of 64 in 0.95 of the time of one piece), and all threads of the process wait for each."""

INT8_CACHE_VERSION = (0, 16, 0)
"""Earlier versions end the process at the first pass over a graph with an int8 KV cache."""

_OTHER_ENGINE = 'Load it with engine="onnxruntime".'


@dataclass(frozen=True)
class GenaiEngine:
    """onnxruntime-genai as an engine; see `engine.Engine`."""

    package: Any
    model: Any
    provider: str
    threads: int
    context: int
    vocab_size: int
    bytes_per_token: int
    kernels: Kernels = own_kernels("onnxruntime-genai has these")  # noqa: RUF009  a frozen record
    name: str = "genai"
    cache_layout: CacheLayout | None = None

    def new_sessions(self, together: int) -> Callable[[], GenaiSession]:
        """Returns a maker of sessions, each of which reads alone."""
        return lambda: GenaiSession(self)


class GenaiSession:
    """A session (see `engine.Session`) over onnxruntime-genai's `Generator`.

    Args:
        engine: the loaded model.
    """

    def __init__(self, engine: GenaiEngine) -> None:
        self._engine = engine
        self.deadline: float | None = None
        self.length = 0
        self._sole_use = SoleUse("session")
        self._cancelled = threading.Event()
        self._generator: Any = engine.package.Generator(
            engine.model, engine.package.GeneratorParams(engine.model)
        )

    @property
    def context(self) -> int:
        """Most tokens this session can hold."""
        return self._engine.context

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache: as much as the tokens need. A forward pass makes a new one beside it."""
        return self.length * self._engine.bytes_per_token

    @property
    def row_limit(self) -> int:
        """The generator gives the last row only."""
        return 1

    @property
    def seconds_ahead(self) -> float:
        """Nothing is read before it is asked for."""
        return 0.0

    def forward(self, token_ids: Sequence[int] | NDArray[np.int64], rows: int = 1) -> NDArray[np.float32]:
        """Reads tokens, piece by piece; see `engine.Session`."""
        with self._sole_use:
            return self._forward(np.ascontiguousarray(token_ids, np.int64).reshape(-1), rows)

    def announce(self, token_id: int) -> None:
        """Nothing to prepare: a session reads alone."""

    def truncate(self, length: int) -> None:
        """Forgets all tokens after the first `length`.

        Raises:
            GenerationError: fewer tokens than that have been read, or the session is closed.
        """
        check_truncation(length, self.length)
        if length < self.length:
            self._generator.rewind_to(length)
            self.length = length

    def snapshot(self, start: int = 0, stop: int | None = None) -> Snapshot | None:
        """None: the generator does not take keys and values back."""
        return None

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Snapshots are of other engines.

        Raises:
            GenerationError: always.
        """
        raise GenerationError("onnxruntime-genai cannot restore a snapshot", hint=_OTHER_ENGINE)

    def cancel(self) -> None:
        """Refuses further forward passes; one that runs in another thread goes on to its end."""
        self._cancelled.set()

    def close(self) -> None:
        """Frees the KV cache. Closing twice does nothing."""
        self._generator = None
        self.length = 0

    def _check_ids(self, tokens: NDArray[np.int64]) -> None:
        """Refuses ids that the model does not have: the kernels would take whatever they find there."""
        outside = tokens[(tokens < 0) | (tokens >= self._engine.vocab_size)]
        if outside.size:
            last = self._engine.vocab_size - 1
            raise GenerationError(f"the token id {outside[0]} is not the model's; valid: 0 to {last}")

    def _forward(self, tokens: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
        """Reads tokens of shape (count,), and returns the last row of logits."""
        if self._generator is None:
            raise GenerationError("the session is closed", hint="Start another generation.")
        if rows != 1 or not tokens.size:
            raise GenerationError(
                f"{rows} rows of logits were asked for {tokens.size} tokens; valid: 1, for at least 1 token",
                hint='Several rows need engine="onnxruntime".',
            )
        self._check_ids(tokens)
        check_room(self.length, tokens.size, self.context)
        for start in range(0, tokens.size, PREFILL_CHUNK):
            if self._cancelled.is_set():
                raise Cancelled("the generation was cancelled")
            if self.deadline is not None and time.perf_counter() >= self.deadline:
                raise DeadlinePassed("the time for this generation is up")
            self._read(tokens[start : start + PREFILL_CHUNK].astype(np.int32))
        logits: NDArray[np.float32] = self._generator.get_logits().reshape(-1, self._engine.vocab_size)[-1:]
        return logits

    def _read(self, tokens: NDArray[np.int32]) -> None:
        """Runs the model over `tokens`. A failure closes the session: what is cached then is not known."""
        try:
            self._generator.append_tokens(tokens)
        except Exception as error:  # its errors share no other base
            start, end = self.length, self.length + tokens.size
            self.close()
            raise GenerationError(f"onnxruntime-genai failed on tokens {start} to {end}: {error}") from error
        self.length += tokens.size


def open_genai(folder: Path, manifest: Manifest, options: EngineOptions) -> GenaiEngine:
    """Opens an artifact's model file; see `engines.open_engine`."""
    if options.kernels not in (AUTO, OFF):
        raise GenerationError(
            f"kernels is {options.kernels!r}; valid with the engine genai: {AUTO}, {OFF}", hint=_OTHER_ENGINE
        )
    if options.exact_drafts:
        raise GenerationError("the engine genai has no exact_drafts", hint=_OTHER_ENGINE)
    package = import_genai()
    chosen = check_compatibility(manifest, options.provider)
    installed = f"onnxruntime-genai {package.__version__}"
    if chosen.name != "cpu":
        raise IncompatibleRuntimeError(
            f"the engine genai runs on the provider cpu only; {chosen.name} was asked for",
            hint=f'Pass provider="cpu", or: {_OTHER_ENGINE}',
        )
    layout = CacheLayout.from_manifest(manifest, chosen.device)
    installed_version = parse_version(str(package.__version__)) or (0, 0, 0)
    if layout.dtype.kind != "f" and installed_version < INT8_CACHE_VERSION:
        raise IncompatibleRuntimeError(
            f"the artifact's KV cache is {layout.dtype}; {installed} takes floats only",
            hint=f'Upgrade it: pip install --upgrade "onnxruntime-genai>=0.16"; or: {_OTHER_ENGINE}',
        )
    _check_configuration(folder, manifest)
    changes = json.dumps(_changes(options.threads, options.context))
    try:
        config = package.Config(str(folder))
        config.clear_providers()
        config.overlay(changes)
        model = package.Model(config)
    except Exception as error:  # its errors share no other base
        if "Protobuf parsing failed" in str(error):
            raise ArtifactError(
                f"{folder / manifest.graph.file} is not a model: {error}", hint="Build the artifact again."
            ) from error
        raise IncompatibleRuntimeError(
            f"{installed} cannot load {manifest.graph.file}: {error}", hint=_OTHER_ENGINE
        ) from error
    return GenaiEngine(
        package,
        model,
        provider=chosen.name,
        threads=options.threads.count,
        context=options.context,
        vocab_size=manifest.model.vocab_size,
        bytes_per_token=layout.bytes_per_token,
    )


def import_genai() -> Any:
    """Imports onnxruntime-genai with its telemetry off, as `import_onnxruntime` does.

    ONNX Runtime comes first: without it, onnxruntime-genai ends the process.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    import_onnxruntime()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise MissingExtraError(
            f"onnxruntime-genai is not installed ({error})",
            hint='Install it: pip install "qtool-edge[genai]"',
        ) from error
    if hasattr(onnxruntime_genai, "disable_telemetry_events"):  # not in earlier versions
        onnxruntime_genai.disable_telemetry_events()
    return onnxruntime_genai


def _check_configuration(folder: Path, manifest: Manifest) -> None:
    """Refuses an artifact without a configuration for onnxruntime-genai, or with another than ours.

    Raises:
        IncompatibleRuntimeError: there is none.
        ArtifactError: it is not the one that follows from the manifest.
    """
    sizes = {entry.path: entry.size for entry in manifest.files}
    if FILE_NAME not in sizes:
        raise IncompatibleRuntimeError(
            f"the artifact has no {FILE_NAME}, which onnxruntime-genai needs", hint=_OTHER_ENGINE
        )
    expected = genai_config(
        manifest.model, manifest.graph, manifest.kv_cache, manifest.generation, manifest.context
    ).encode()
    if sizes[FILE_NAME] != len(expected) or (folder / FILE_NAME).read_bytes() != expected:
        raise ArtifactError(
            f"{FILE_NAME} is not what follows from the manifest, and could name other files to load",
            hint="Build the artifact again.",
        )


def _changes(threads: Threads, context: int) -> dict[str, Any]:
    """What differs from the artifact's configuration here, as a part of such a document."""
    session = {
        "intra_op_num_threads": threads.count,
        "inter_op_num_threads": 1,
        "log_severity_level": 3,  # errors only, and no plans of memory: see `graph.py`
        "enable_mem_pattern": False,
        **threads.session_entries,
    }
    return {
        "model": {"decoder": {"session_options": session}},
        "search": {"max_length": context, "past_present_share_buffer": False},
    }
