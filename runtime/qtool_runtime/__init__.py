"""Loads an artifact on the device and generates text, with numpy, onnxruntime, tokenizers and jinja2 only.

    import qtool_runtime

    with qtool_runtime.load("my-artifact") as model:
        for piece in model.chat([{"role": "user", "content": "Hello"}]):
            print(piece, end="", flush=True)

Importing the package is cheap: numpy comes with the first name that is used, onnxruntime and tokenizers with
`load`, jinja2 with `chat`. Nothing is ever sent anywhere.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qtool_runtime.errors import (
    ArtifactError,
    ContextLimitError,
    GenerationError,
    IncompatibleRuntimeError,
    KvFileError,
    MissingExtraError,
    QtoolError,
)

if TYPE_CHECKING:
    from qtool_runtime.answer import AnswerText, Event, ReasoningText
    from qtool_runtime.answers import Answers
    from qtool_runtime.engine import Session
    from qtool_runtime.generate import GenerationResult
    from qtool_runtime.health import HealthCheck, HealthReport
    from qtool_runtime.loading import load
    from qtool_runtime.logprobs import TokenLogprob, TokenLogprobs
    from qtool_runtime.manifest import Manifest
    from qtool_runtime.metrics import Distribution, Metrics, MetricsSummary
    from qtool_runtime.model import Model
    from qtool_runtime.sampling import SamplingOptions
    from qtool_runtime.saved_prefix import SavedPrefix
    from qtool_runtime.stream import TextStream
    from qtool_runtime.tools import MalformedToolCall, ToolCall

__all__ = [
    "AnswerText",
    "Answers",
    "ArtifactError",
    "ContextLimitError",
    "Distribution",
    "Event",
    "GenerationError",
    "GenerationResult",
    "HealthCheck",
    "HealthReport",
    "IncompatibleRuntimeError",
    "KvFileError",
    "MalformedToolCall",
    "Manifest",
    "Metrics",
    "MetricsSummary",
    "MissingExtraError",
    "Model",
    "QtoolError",
    "ReasoningText",
    "SamplingOptions",
    "SavedPrefix",
    "Session",
    "TextStream",
    "TokenLogprob",
    "TokenLogprobs",
    "ToolCall",
    "load",
]

_HOMES = {
    "AnswerText": "answer",
    "Answers": "answers",
    "Distribution": "metrics",
    "Event": "answer",
    "GenerationResult": "generate",
    "HealthCheck": "health",
    "HealthReport": "health",
    "MalformedToolCall": "tools",
    "Manifest": "manifest",
    "Metrics": "metrics",
    "MetricsSummary": "metrics",
    "Model": "model",
    "ReasoningText": "answer",
    "SamplingOptions": "sampling",
    "SavedPrefix": "saved_prefix",
    "Session": "engine",
    "TextStream": "stream",
    "TokenLogprob": "logprobs",
    "TokenLogprobs": "logprobs",
    "ToolCall": "tools",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    """Imports a public name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
