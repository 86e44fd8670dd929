"""Whose kernels compute an artifact's matrix products and attention: ONNX Runtime's, or the optional pack's.

The package qtool-kernels (the extra `kernels`) implements some of the operators of the domain com.microsoft
again, in a domain of its own. Artifacts do not name it: when a graph is loaded, its nodes are pointed there,
and groups of them become one node (`fused_nodes`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtool_runtime.compatibility import Provider
from qtool_runtime.errors import ArtifactError, GenerationError, IncompatibleRuntimeError, MissingExtraError
from qtool_runtime.fused_nodes import fuse
from qtool_runtime.manifest import Manifest
from qtool_runtime.model_file import ModelFile, Node

AUTO, OFF = "auto", "off"
ONNXRUNTIME = "onnxruntime"
PORTABLE = "portable"
"""The instruction set that every processor has: a reference, and slow."""

REPLACED_DOMAIN, PACK_DOMAIN = "com.microsoft", "qtool.kernels"

_INSTALL = 'Install it: pip install "qtool-edge[kernels]", or from the sources, pip install ./runtime/kernels'
_log = logging.getLogger("qtool_runtime")
_creating = threading.Lock()


@dataclass(frozen=True)
class Kernels:
    """What computes a loaded artifact's matrix products and attention.

    Attributes:
        name: "onnxruntime" for its own kernels, else the pack's instruction set, such as "avx2".
        reason: why, for a person to read.
        pack: the module `qtool_kernels`, or None.
    """

    name: str
    reason: str
    pack: Any = None

    @property
    def in_place(self) -> bool:
        """Whether weights are read where the file is mapped, rather than packed into memory of their own."""
        return self.pack is not None

    @contextmanager
    def registered(self, options: Any) -> Iterator[None]:
        """Makes the pack known to the session that is created with the `SessionOptions` in this block."""
        if self.pack is None:
            yield
            return
        with _creating:  # the instruction set is a setting of the process, which kernels keep
            self.pack.select(self.name)
            options.register_custom_ops_library(str(self.pack.library_path()))
            yield

    def point(self, graph: Path, manifest: Manifest) -> bytes:
        """Returns a model file with its nodes pointed to the pack, and fused.

        Raises:
            ArtifactError: it is not a model file.
            IncompatibleRuntimeError: it has no node that the pack computes.
        """
        attention = manifest.kv_cache.dtype == "float32"

        def is_supported(node: Node) -> bool:
            if node.domain != REPLACED_DOMAIN or (node.operator == "GroupQueryAttention" and not attention):
                return False
            return bool(self.pack.supports(node.operator, node.attributes))

        try:
            model = ModelFile.read(graph.read_bytes())
        except ArtifactError as error:
            raise ArtifactError(f"{graph} is not a model: {error.message}", hint=error.hint) from error
        nodes = [node.moved(PACK_DOMAIN) if is_supported(node) else node for node in model.nodes]
        if all(node.domain != PACK_DOMAIN for node in nodes):
            raise IncompatibleRuntimeError("the artifact has no operator that qtool-kernels computes")
        return model.write(fuse(nodes, model.outputs, PACK_DOMAIN), PACK_DOMAIN)


def own_kernels(reason: str) -> Kernels:
    """Returns ONNX Runtime's own kernels."""
    return Kernels(ONNXRUNTIME, reason)


def choose_kernels(wanted: str, manifest: Manifest, provider: Provider) -> Kernels:
    """Decides before anything is loaded.

    Args:
        wanted: "auto" for the best that works here, "off" for ONNX Runtime's own, or one of the pack's
            instruction sets.
        manifest: the artifact's.
        provider: where it will run.

    Raises:
        MissingExtraError: an instruction set was asked for, and the pack is not installed.
        IncompatibleRuntimeError: it was asked for, and does not work here.
        GenerationError: there is no such instruction set on this processor.
    """
    if wanted == OFF:
        return own_kernels("switched off")
    unsuitable = _unsuitable(manifest, provider)
    if unsuitable and wanted == AUTO:
        return own_kernels(unsuitable)
    if unsuitable:
        raise IncompatibleRuntimeError(unsuitable, hint=f"Pass kernels={AUTO!r} or {OFF!r}.")
    try:
        return _open_pack(wanted)
    except MissingExtraError as error:
        if wanted != AUTO:
            raise
        return own_kernels(error.message)  # nobody who did not install it needs to hear of it
    except IncompatibleRuntimeError as error:
        if wanted != AUTO:
            raise
        return fall_back(error.message)


def fall_back(reason: str) -> Kernels:
    """Returns ONNX Runtime's own kernels, and says that it is not those that are installed."""
    _log.warning("qtool-kernels is installed and is not used: %s", reason)
    return own_kernels(reason)


def _unsuitable(manifest: Manifest, provider: Provider) -> str | None:
    """Returns why the pack is not for an artifact, wherever it is installed."""
    if provider.name != "cpu":
        return f"qtool-kernels computes on the CPU; this artifact runs on {provider.name}"
    if manifest.kv_cache.dtype == "float16":
        return "qtool-kernels computes with float32 activations; this artifact's are float16"
    if not any(operators.domain == REPLACED_DOMAIN for operators in manifest.operators):
        return "the artifact has none of the operators that qtool-kernels computes"
    return None


def _open_pack(wanted: str) -> Kernels:
    try:
        import qtool_kernels as pack
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"qtool-kernels is not installed ({error})", hint=_INSTALL) from error
    except (ImportError, OSError) as error:  # a library that this system cannot load
        raise IncompatibleRuntimeError(f"qtool-kernels cannot be loaded: {error}", hint=_INSTALL) from error
    available = pack.instruction_sets()
    if wanted not in (AUTO, *available):
        valid = ", ".join([AUTO, OFF, *available])
        raise GenerationError(f"kernels is {wanted!r}; valid on this processor: {valid}")
    names = [name for name in available if name != PORTABLE] if wanted == AUTO else [wanted]
    if not names:
        return own_kernels("qtool-kernels has nothing for this processor that is faster")
    failures = []
    for name in names:  # best first
        try:
            pack.self_test(name)
        except pack.SelfTestError as error:
            failures.append(str(error))
            continue
        if failures:
            _log.warning("%s; %s is used instead", _failed(failures), name)
        return Kernels(name, f"qtool-kernels {pack.__version__}", pack)
    raise IncompatibleRuntimeError(_failed(failures))


def _failed(failures: list[str]) -> str:
    return f"the self-test of qtool-kernels failed: {'; '.join(failures)}"
