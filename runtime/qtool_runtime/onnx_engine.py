"""The engine "onnxruntime": ONNX Runtime with a KV cache of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qtool_runtime.batch_session import new_sessions
from qtool_runtime.compatibility import check_compatibility
from qtool_runtime.engine import EngineOptions, Session
from qtool_runtime.errors import IncompatibleRuntimeError
from qtool_runtime.exact_drafts import make_drafts_exact
from qtool_runtime.graph import LoadedGraph, open_graph
from qtool_runtime.kernels import AUTO, Kernels, choose_kernels, fall_back
from qtool_runtime.kv_cache import CacheLayout
from qtool_runtime.manifest import Manifest


@dataclass(frozen=True)
class OnnxEngine:
    """ONNX Runtime as an engine; see `engine.Engine`."""

    graph: LoadedGraph
    provider: str
    threads: int
    kernels: Kernels
    name: str = "onnxruntime"

    @property
    def context(self) -> int:
        """Most tokens that a session can hold."""
        return self.graph.context

    @property
    def cache_layout(self) -> CacheLayout:
        """The graph's cached tensors."""
        return self.graph.cache_layout

    def new_sessions(self, together: int) -> Callable[[], Session]:
        """Returns a maker of sessions, which common forward passes extend if there will be several."""
        return new_sessions(self.graph, together)


def open_onnxruntime(folder: Path, manifest: Manifest, options: EngineOptions) -> OnnxEngine:
    """Opens an artifact's model file; see `engines.open_engine`."""
    provider = check_compatibility(manifest, options.provider)
    if options.exact_drafts and provider.name != "cpu":
        raise IncompatibleRuntimeError(
            f"exact_drafts is for the provider cpu; this is {provider.name}", hint="Load without it."
        )
    kernels = choose_kernels(options.kernels, manifest, provider)
    try:
        graph = open_graph(folder, manifest, provider, kernels, options)
    except IncompatibleRuntimeError as error:
        if options.kernels != AUTO or not kernels.pack:
            raise
        kernels = fall_back(error.message)
        graph = open_graph(folder, manifest, provider, kernels, options)
    if options.exact_drafts:
        graph = make_drafts_exact(graph)
    return OnnxEngine(graph, provider.name, options.threads.count, kernels)
