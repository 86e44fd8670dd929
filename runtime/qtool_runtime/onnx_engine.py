"""The engine "onnxruntime": ONNX Runtime with a KV cache of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qtool_runtime.batch_session import new_sessions
from qtool_runtime.compatibility import check_compatibility
from qtool_runtime.engine import Session
from qtool_runtime.graph import LoadedGraph, open_graph
from qtool_runtime.kv_cache import CacheLayout
from qtool_runtime.manifest import Manifest
from qtool_runtime.threads import Threads


@dataclass(frozen=True)
class OnnxEngine:
    """ONNX Runtime as an engine; see `engine.Engine`."""

    graph: LoadedGraph
    provider: str
    threads: int
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


def open_onnxruntime(
    folder: Path, manifest: Manifest, provider: str | None, threads: Threads, context: int
) -> OnnxEngine:
    """Opens an artifact's model file; see `engines.open_engine`."""
    chosen = check_compatibility(manifest, provider)
    graph = open_graph(folder, manifest, chosen, threads, context)
    return OnnxEngine(graph, chosen.name, threads.count)
