"""The whole benchmark: checks, then rounds, then a report."""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

from qtool.bench.bandwidth import read_bandwidth
from qtool.bench.choice import choose
from qtool.bench.lengths import ROUNDS, Lengths
from qtool.bench.measures import Spread
from qtool.bench.peers import Peers
from qtool.bench.report import Report
from qtool.bench.rounds import Conditions, Contender, Progress, measure
from qtool.errors import GenerationError
from qtool_runtime import manifest
from qtool_runtime.compatibility import check_compatibility
from qtool_runtime.integrity import check_files
from qtool_runtime.kernels import AUTO, choose_kernels
from qtool_runtime.manifest import Manifest
from qtool_runtime.threads import check_threads

NO_PEERS = Peers()


def benchmark(
    artifact: str | Path,
    *,
    lengths: Lengths | None = None,
    threads: int | None = None,
    rounds: int = ROUNDS,
    provider: str | None = None,
    kernels: str = AUTO,
    peers: Peers = NO_PEERS,
    progress: Progress = lambda line: None,
) -> Report:
    """Measures an artifact in qtool's runtime and, beside it, the same model in other engines.

    Everything that can be known before is checked before anything is loaded.

    Args:
        artifact: folder that `qtool build` wrote.
        lengths: prompts and depths; what the artifact's context has no room for is clipped. None for the
            defaults.
        threads: CPU threads of each engine; None for the CPUs that this process may use.
        rounds: how often every engine is started and measured.
        provider: where the artifact runs; None for what it was built for.
        kernels: what computes in qtool's runtime; see `qtool_runtime.load`.
        peers: engines to compare with.
        progress: is told a line of text now and then.

    Raises:
        ArtifactError: the artifact is not whole.
        IncompatibleRuntimeError: the installed onnxruntime cannot run it.
        ContextLimitError: its context has no room for the lengths.
        GenerationError: a count is not valid, or there are no such kernels.
        SourceError: a peer's model is missing, or another model.
        UnsupportedModelError: a peer's model is of a kind that no artifact has.
        MissingExtraError: onnxruntime, or a peer that was asked for by name, is not installed.
        EngineError: qtool's runtime, or a peer that was asked for by name, failed.
    """
    if rounds < 1:
        raise GenerationError(f"rounds is {rounds}; valid: counts from 1")
    threads = check_threads(threads, None).count
    folder = Path(artifact)
    document = manifest.read(folder)
    asked = lengths or Lengths()
    fitting = asked.clipped(document.context)
    if fitting != asked:
        progress(f"lengths are clipped to the artifact's context of {document.context} tokens")
    chosen = check_compatibility(document, provider)
    choose_kernels(kernels, document, chosen)
    others, skipped = choose(peers, folder, document, chosen.name)
    for reason in skipped.values():
        progress(f"skipped: {reason}")
    check_files(folder, document, hashes=False, extra=False)
    ours = Contender(
        "qtool", folder, sys.executable, chosen.name, required=True, version=version("qtool-edge")
    )
    before = _load_average()
    limits = measure(
        [ours, *others],
        Conditions(fitting, threads, kernels, token_limit(document)),
        rounds,
        bandwidth=partial(read_bandwidth, threads) if chosen.name == "cpu" else None,
        progress=progress,
    )
    after = _load_average()
    failed = {peer.engine: peer.failure.message for peer in others if peer.failure is not None}
    return Report(
        artifact=folder,
        manifest=document,
        provider=chosen.name,
        threads=threads,
        lengths=fitting,
        ours=ours,
        peers=[peer for peer in others if peer.failure is None],
        skipped=skipped | failed,
        read_bandwidth=Spread(tuple(limits)) if limits else None,
        load_average=None if before is None or after is None else (before, after),
    )


def token_limit(document: Manifest) -> int:
    """Returns an id below which all tokens are ordinary: Qwen's vocabularies have the special ones last."""
    generation = document.generation
    special = [*generation.eos_token_ids, generation.bos_token_id, generation.pad_token_id]
    return max(1, min(document.model.vocab_size, *(token for token in special if token is not None)))


def _load_average() -> float | None:
    """Returns how many processes wanted a CPU in the last minute, on average."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
