"""Which other engines can be compared, and what each needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qtool.errors import EngineError

ARTIFACT, GGUF, OPENVINO, CHECKPOINT = "artifact", "gguf", "openvino", "checkpoint"


@dataclass(frozen=True)
class Peer:
    """An engine that qtool's runtime can be compared with.

    Attributes:
        kinds: kinds of models that it can load, the preferred one first.
        install: packages to install.
    """

    kinds: tuple[str, ...]
    install: str


PEERS = {
    "onnxruntime-genai": Peer((ARTIFACT,), "onnxruntime-genai"),
    "llama.cpp": Peer((GGUF,), "llama-cpp-python"),
    "openvino-genai": Peer((OPENVINO, GGUF), "openvino-genai"),
    "transformers": Peer((CHECKPOINT,), "transformers torch"),
}


@dataclass(frozen=True)
class Peers:
    """Which engines to compare with, and their models.

    Attributes:
        all: every peer that can run; those that cannot are skipped.
        names: peers that must run.
        pythons: peer -> interpreter that has its packages, where it is not this one.
        models: "gguf", "openvino" or "checkpoint" -> file or folder of the same model.
    """

    all: bool = False
    names: tuple[str, ...] = ()
    pythons: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.names, *self.pythons):
            if name not in PEERS:
                raise EngineError(f"the peer {name!r} is unknown; known: {', '.join(PEERS)}")
