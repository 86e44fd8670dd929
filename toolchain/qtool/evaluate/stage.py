"""The stage of a build that measures artifacts, before they are put in place.

It works in the temporary folders: an artifact that misses a gate never exists. The figures go into its
manifest, which is written afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from qtool.errors import IncompatibleRuntimeError
from qtool.evaluate.evaluation import run
from qtool.evaluate.gates import check_quality, check_size
from qtool.evaluate.measure import WINDOW, SessionReader
from qtool.evaluate.reference import PROVIDER, check_disk, checkpoint_reference
from qtool.evaluate.report import quality
from qtool.evaluate.text import check_count, evaluation_tokens, nano_text, own_text
from qtool.jobs import Job
from qtool.pipeline import Progress
from qtool_runtime import load
from qtool_runtime.compatibility import PROVIDERS, check_available
from qtool_runtime.engine import EngineOptions
from qtool_runtime.kernels import OFF
from qtool_runtime.manifest import Manifest, Quality
from qtool_runtime.onnx_engine import open_onnxruntime
from qtool_runtime.threads import check_threads


class QualityStage:
    """Measures the artifacts of one model that are to be measured, and holds all to their gates.

    Args:
        jobs: all artifacts of the run.
        threads: CPU threads.
        progress: is told about the stage.

    Raises:
        IncompatibleRuntimeError: the installed onnxruntime lacks the provider of an artifact to be measured.
        MissingExtraError: onnxruntime is not installed.
        SourceError: the text is too short.
        GenerationError: too few tokens are asked for.
        OutputError: the disk has no room for a copy of the source in float32.
    """

    def __init__(self, jobs: Sequence[Job], *, threads: int, progress: Progress) -> None:
        self._jobs = jobs
        self._threads = threads
        self._progress = progress
        self._measured = [index for index, job in enumerate(jobs) if job.evaluation is not None]
        if not self._measured:
            return
        for index in self._measured:
            _check_provider(jobs[index])
        checkpoint = jobs[0].checkpoint
        self._window = min(WINDOW, *(jobs[index].context for index in self._measured))
        check_disk(checkpoint, self._window, threads)
        self._reference = checkpoint_reference(checkpoint, threads=threads, progress=progress)
        evaluation = jobs[self._measured[0]].evaluation
        assert evaluation is not None
        check_count(evaluation.tokens)
        self._text = evaluation.text or (nano_text() if self._reference.is_nano else own_text())
        self._ids = evaluation_tokens(self._text, self._reference.tokenizer, evaluation.tokens)

    def run(self, folders: Sequence[Path], manifests: Sequence[Manifest]) -> list[Manifest]:
        """Measures artifacts that are whole but for their manifests.

        Args:
            folders: the temporary folder of each job.
            manifests: of each job.

        Returns:
            The manifests, with the figures of those that were measured.

        Raises:
            GateError: an artifact misses a gate of its target.
        """
        for job, manifest in zip(self._jobs, manifests, strict=True):
            check_size(job, manifest)
        documents = list(manifests)
        if not self._measured:
            return documents
        figures = self._measure([(folders[index], manifests[index]) for index in self._measured])
        names = [self._jobs[index].target.name for index in self._measured]
        by_target = dict(zip(names, figures, strict=True))
        for index, found in zip(self._measured, figures, strict=True):
            check_quality(self._jobs[index], manifests[index], by_target)
            documents[index] = replace(manifests[index], quality=found)
        return documents

    def _measure(self, artifacts: Sequence[tuple[Path, Manifest]]) -> list[Quality]:
        """Compares one artifact after the other with the source.

        The source stays loaded, and reads the text again beside each: so there is never more than one
        artifact in memory, however many are built.
        """
        with ExitStack() as stack:
            folder = stack.enter_context(self._reference.folder(self._window))
            model = stack.enter_context(
                load(
                    folder,
                    threads=self._threads,
                    provider=PROVIDER,
                    context=self._window,
                    prefix_memory=0,
                    huge_pages=False,
                    kernels=OFF,
                )
            )
            source = SessionReader(model.new_session(), self._reference.name)
            return [
                self._quality(source, *artifact, number, len(artifacts))
                for number, artifact in enumerate(artifacts)
            ]

    def _quality(
        self, source: SessionReader, folder: Path, manifest: Manifest, number: int, count: int
    ) -> Quality:
        """Measures the artifact of this number, of so many."""

        def progress(stage: str, done: int, total: int) -> None:
            self._progress(stage, number * total + done, count * total)

        with self._opened(folder, manifest) as reader:
            reference, tally = run(
                [source, reader], self._ids, self._reference.vocab_size, self._window, progress
            )
        return quality(
            tally,
            reference,
            window=self._window,
            text_sha256=self._text.sha256,
            provider=manifest.graph.provider,
        )

    @contextmanager
    def _opened(self, folder: Path, manifest: Manifest) -> Iterator[SessionReader]:
        """Opens an artifact without its manifest, which is written when everything is known."""
        options = EngineOptions(None, check_threads(self._threads, None), self._window, kernels=OFF)
        engine = open_onnxruntime(folder, manifest, options)
        with closing(engine.new_sessions(1)()) as session:
            yield SessionReader(session, f"the artifact for {manifest.target.get('name')}")


def _check_provider(job: Job) -> None:
    """Refuses an artifact that cannot run here.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        IncompatibleRuntimeError: it lacks the artifact's provider.
    """
    try:
        check_available(PROVIDERS[job.target.execution.provider])
    except IncompatibleRuntimeError as error:
        raise IncompatibleRuntimeError(
            f"target {job.target.name} cannot be compared with its source here: {error.message}",
            hint="Build it without --evaluate and gates of quality, and run `qtool eval` where there is one.",
        ) from error
