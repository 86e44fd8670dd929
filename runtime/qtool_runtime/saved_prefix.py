"""Saving what a model has read, and loading it again: between the prefix memory and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool_runtime import kv_file
from qtool_runtime.engine import Engine, Session
from qtool_runtime.errors import ArtifactError, GenerationError
from qtool_runtime.kv_cache import CacheLayout
from qtool_runtime.manifest import Manifest
from qtool_runtime.prefix_memory import PrefixMemory
from qtool_runtime.prompt import Prompt

MAXIMUM_TEXT_BYTES = 16 << 20
"""More than any context holds."""


@dataclass(frozen=True)
class SavedPrefix:
    """What a file held.

    Attributes:
        token_ids: the tokens whose keys and values it had.
        messages: the conversation that was saved; empty if it was a plain prompt.
    """

    token_ids: list[int]
    messages: list[dict[str, Any]]


def read_text(path: Path) -> str:
    """Reads the text of a baked prompt.

    Raises:
        ArtifactError: it is too long, not UTF-8, or cannot be read.
    """
    try:
        if path.stat().st_size > MAXIMUM_TEXT_BYTES:
            raise ArtifactError(
                f"{path} has {path.stat().st_size} bytes; valid: {MAXIMUM_TEXT_BYTES} at most"
            )
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", hint="Build the artifact again.") from error


@dataclass(frozen=True)
class PrefixFiles:
    """Writes and reads the files of one model.

    Attributes:
        model: `Manifest.kv_digest` of the model where it runs.
        layout: its cached tensors; None if the engine does not give them.
        context: most tokens that a file may have.
        memory: what its sessions have read.
    """

    model: str
    layout: CacheLayout | None
    context: int
    memory: PrefixMemory

    @classmethod
    def of(cls, manifest: Manifest, engine: Engine, memory: PrefixMemory) -> PrefixFiles:
        """Returns the files of the model of a manifest, where it runs."""
        return cls(manifest.kv_digest(engine.provider), engine.cache_layout, manifest.context, memory)

    @property
    def usable(self) -> bool:
        """Whether there can be any."""
        return self.layout is not None

    def save(
        self,
        path: Path,
        token_ids: NDArray[np.int64],
        messages: Sequence[Mapping[str, Any]],
        new_session: Callable[[], Session],
    ) -> None:
        """Writes keys and values of a sequence of tokens.

        Args:
            path: the file; one that is there is replaced.
            token_ids: shape (count,), at least one.
            messages: the conversation that they are of, to be kept with them.
            new_session: makes an empty session, to read what the memory does not know.

        Raises:
            ContextLimitError: they do not fit.
            GenerationError: the engine does not give keys and values.
            KvFileError: the messages are no plain data, or the file cannot be written.
        """
        layout, kept = self._layout(), kv_file.as_messages(messages)
        session = new_session()
        try:
            Prompt(token_ids, self.memory, remember=False).read_into(session)
            values = session.snapshot()
        finally:
            session.close()
        assert values is not None
        header = kv_file.Header.describing(self.model, layout, len(token_ids))
        kv_file.write(path, replace(header, messages=kept), token_ids.tolist(), values)

    def load(self, path: Path) -> SavedPrefix:
        """Reads a file into the memory, as much of its start as that has room for.

        Raises:
            GenerationError: the memory has no room at all, or the engine does not take keys and values.
            KvFileError: the file cannot be used (see `kv_file.read`).
        """
        if not self.memory.limit:
            raise GenerationError(
                "there is no prefix memory to load into", hint="Load the model with prefix_memory above 0."
            )
        file = kv_file.read(path, self.model, self._layout(), self.context)
        self.memory.remember(
            file.token_ids,
            lambda start, stop: tuple(tensor[:, :, start:stop].copy() for tensor in file.values),
        )
        return SavedPrefix(file.token_ids, list(file.header.messages))

    def pin(self, path: Path) -> None:
        """Lets the memory use a file of the artifact's for good; its pages are read when they are needed.

        Raises:
            KvFileError: the file cannot be used. Its SHA-256 is not compared: `verify` is there for that.
        """
        file = kv_file.read(path, self.model, self._layout(), self.context, verify=False)
        self.memory.pin(file.token_ids, file.values)

    def _layout(self) -> CacheLayout:
        if self.layout is None:
            raise GenerationError(
                "this engine keeps its keys and values to itself, so there are no files of them",
                hint='Load the model with engine="onnxruntime".',
            )
        return self.layout
