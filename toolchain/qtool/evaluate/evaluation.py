"""A whole evaluation: checks, then both models over the text, then a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qtool.bench.worker import memory
from qtool.errors import GenerationError, SourceError
from qtool.evaluate.divergence import Distribution, Ids, Tally
from qtool.evaluate.measure import WINDOW, Reader, SessionReader, measure
from qtool.evaluate.reference import PROVIDER, Reference, open_reference
from qtool.evaluate.report import ArtifactReport, Histogram, Report
from qtool.evaluate.task import CONTEXT as TASK_CONTEXT
from qtool.evaluate.task import task_accuracies
from qtool.evaluate.text import check_count, evaluation_tokens, nano_text, own_text
from qtool.evaluate.weight_error import weight_errors
from qtool.evaluate.weights import artifact_weights
from qtool.nano.accuracy import Score
from qtool.pipeline import Progress
from qtool.plain_text import PlainText, read_plain_text
from qtool_runtime import Model, load, manifest
from qtool_runtime.compatibility import check_compatibility, import_onnxruntime
from qtool_runtime.integrity import check_files
from qtool_runtime.kernels import AUTO, OFF, choose_kernels
from qtool_runtime.manifest import Manifest
from qtool_runtime.text import Tokenizer
from qtool_runtime.threads import check_threads


@dataclass(frozen=True)
class Candidate:
    """An artifact to be measured.

    Attributes:
        folder: where it is.
        manifest: its manifest.
        provider: where to run it.
        kernels: what is to compute (see `qtool_runtime.load`), and after loading what does.
    """

    folder: Path
    manifest: Manifest
    provider: str
    kernels: str

    @classmethod
    def checked(cls, folder: Path, provider: str | None, kernels: str) -> Candidate:
        """Reads an artifact's manifest, and checks that the artifact can be loaded here.

        Raises:
            ArtifactError: it is not whole.
            IncompatibleRuntimeError: the installed onnxruntime cannot run it, or not with these kernels.
            GenerationError: there are no such kernels.
            MissingExtraError: onnxruntime, or the package of the kernels, is not installed.
        """
        document = manifest.read(folder)
        check_files(folder, document, hashes=False, extra=False)
        chosen = check_compatibility(document, provider)
        choose_kernels(kernels, document, chosen)
        return cls(folder, document, chosen.name, kernels)


def evaluate(
    artifacts: Sequence[str | Path],
    against: str | Path | None = None,
    *,
    text: str | Path | None = None,
    tokens: int | None = None,
    threads: int | None = None,
    provider: str | None = None,
    kernels: str = AUTO,
    progress: Progress | None = None,
) -> Report:
    """Measures how close artifacts are to the model that they were built from.

    All models are loaded at the same time and read the text once. Memory is that of the loaded models, and
    about 40 MB for each of them.

    Args:
        artifacts: folders that `qtool build` wrote.
        against: anything that `qtool build` takes, or an artifact in float32; None for the embedded model.
        text: a file of plain text; when absent the one that ships with qtool, or for the embedded model
            conversations that it was not trained on.
        tokens: predictions to compare; 4,096 when absent, or fewer where the text is shorter.
        threads: CPU threads; None for the CPUs that this process may use.
        provider: where artifacts run; None for what each was built for.
        kernels: what computes in the artifacts; see `qtool_runtime.load`.
        progress: is told about every stage.

    Raises:
        ArtifactError: an artifact is not whole, or predicts something that is no number.
        IncompatibleRuntimeError: the installed onnxruntime cannot run it.
        SourceError: the source or the text cannot be read, or the source has another vocabulary.
        UnsupportedModelError: the source is a model of a kind that is not implemented.
        OutputError: the disk has no room for a copy of the source in float32.
        GenerationError: a count is not valid, or there is no artifact, or there are no such kernels.
        MissingExtraError: onnxruntime, or the package of the kernels, is not installed.
    """
    check_count(tokens)
    if not artifacts:
        raise GenerationError("there is no artifact to evaluate", hint="Name at least one.")
    count = check_threads(threads, None).count
    report = progress or (lambda stage, done, total: None)
    given = None if text is None else read_plain_text(text)
    candidates = [Candidate.checked(Path(folder), provider, kernels) for folder in artifacts]
    reference = open_reference(against, threads=count, progress=report)
    content = given or (nano_text() if reference.is_nano else own_text())
    ids = shared_tokens(candidates, reference, content, tokens)
    window, has_tasks = _lengths(candidates, reference)
    with loaded(candidates, reference, count, TASK_CONTEXT if has_tasks else window) as models:
        names = [reference.name, *(str(candidate.folder) for candidate in candidates)]
        readers = [
            SessionReader(model.new_session(), name) for model, name in zip(models, names, strict=True)
        ]
        tallies = run(readers, ids, reference.vocab_size, window, report)
        accuracies = task_accuracies(models, report) if has_tasks else [None] * len(models)
        candidates = [
            replace(candidate, kernels=model.kernels.name)
            for candidate, model in zip(candidates, models[1:], strict=True)
        ]
    found = [
        _artifact_report(candidate, reference, tally, accuracy, report)
        for candidate, tally, accuracy in zip(candidates, tallies[1:], accuracies[1:], strict=True)
    ]
    return Report(
        reference=reference.name,
        reference_perplexity=tallies[0].perplexity,
        reference_accuracy=accuracies[0],
        text=content.name,
        text_sha256=content.sha256,
        tokens=len(ids) - 1,
        window=window,
        onnxruntime=str(import_onnxruntime().__version__),
        peak_memory=memory().get("peak"),
        artifacts=tuple(found),
    )


def _lengths(candidates: Sequence[Candidate], reference: Reference) -> tuple[int, bool]:
    """Returns the tokens of a window, and whether all models can be asked to solve tasks."""
    longest = min([reference.context, *(candidate.manifest.context for candidate in candidates)])
    return min(WINDOW, longest), reference.is_nano and longest >= TASK_CONTEXT


def shared_tokens(
    candidates: Sequence[Candidate], reference: Reference, text: PlainText, count: int | None
) -> Ids:
    """Returns the text as token ids, which have to be the same for all models.

    Raises:
        SourceError: an artifact has another vocabulary than the reference, or the text is too short.
    """
    ids = evaluation_tokens(text, reference.tokenizer, count)
    for candidate in candidates:
        size = candidate.manifest.model.vocab_size
        if size != reference.vocab_size:
            difference = f"{size:,} tokens, {reference.name} has {reference.vocab_size:,}"
        else:
            tokenizer = Tokenizer.from_file(candidate.folder / "tokenizer.json")
            if (evaluation_tokens(text, tokenizer, count) == ids).all():
                continue
            difference = f"other tokens than {reference.name} for the same text"
        raise SourceError(
            f"{candidate.folder} cannot be compared with {reference.name}: its vocabulary has {difference}",
            hint="Give the model that the artifact was built from (--against).",
        )
    return ids


@contextmanager
def loaded(
    candidates: Sequence[Candidate], reference: Reference, threads: int, context: int
) -> Iterator[list[Model]]:
    """Gives the reference and the candidates, ready to read `context` tokens."""
    with ExitStack() as stack:
        folder = stack.enter_context(reference.folder(context))
        places = [
            (folder, PROVIDER, OFF),
            *((each.folder, each.provider, each.kernels) for each in candidates),
        ]
        yield [
            stack.enter_context(
                load(
                    folder,
                    threads=threads,
                    provider=provider,
                    kernels=kernels,
                    context=context,
                    prefix_memory=0,
                    huge_pages=False,
                )
            )
            for folder, provider, kernels in places
        ]


def run(readers: Sequence[Reader], ids: Ids, vocab_size: int, window: int, progress: Progress) -> list[Tally]:
    """Reads the text with all models, of which the first is the reference; returns a tally of each."""
    return measure(
        readers[0],
        readers[1:],
        ids,
        vocab_size=vocab_size,
        window=window,
        progress=lambda done, total: progress("evaluate", done, total),
    )


def _artifact_report(
    candidate: Candidate, reference: Reference, tally: Tally, accuracy: Score | None, progress: Progress
) -> ArtifactReport:
    document = candidate.manifest
    progress("weights", 0, 0)
    return ArtifactReport(
        artifact=str(candidate.folder),
        name=candidate.folder.resolve().name,
        target=str(document.target.get("name")),
        size=sum(entry.size for entry in document.files),
        provider=candidate.provider,
        kernels=candidate.kernels,
        kl=Distribution.of(tally.divergences),
        histogram=Histogram.of(tally.divergences),
        top1_agreement=tally.agreement,
        perplexity=tally.perplexity,
        weight_errors=weight_errors(reference.weights(), artifact_weights(candidate.folder, document)),
        accuracy=accuracy,
    )
