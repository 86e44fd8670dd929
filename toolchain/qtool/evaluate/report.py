"""What an evaluation found, as records and as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.evaluate.divergence import Distribution, Tally
from qtool.evaluate.weight_error import WeightError
from qtool.nano.accuracy import Score
from qtool_runtime.manifest import Quality

_BINS_PER_DECADE = 6
_LOWEST_DECADE, _HIGHEST_DECADE = -8, 2


@dataclass(frozen=True)
class Histogram:
    """How many tokens have a divergence in which range; what is below the first edge is in the first bin.

    Attributes:
        edges: in nats, evenly spaced in logarithms; one more than there are bins.
        tokens: of each bin.
    """

    edges: tuple[float, ...]
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, divergences: NDArray[np.float64]) -> Histogram:
        """Counts divergences of shape (tokens,)."""
        bins = (_HIGHEST_DECADE - _LOWEST_DECADE) * _BINS_PER_DECADE
        edges = np.logspace(_LOWEST_DECADE, _HIGHEST_DECADE, bins + 1)
        counts, _ = np.histogram(np.clip(divergences, edges[0], edges[-1]), edges)
        return cls(tuple(edges.tolist()), tuple(counts.tolist()))


@dataclass(frozen=True)
class ArtifactReport:
    """What was measured of one artifact.

    Attributes:
        artifact: its folder.
        name: the folder's name.
        target: the target's name.
        size: bytes of all its files but the manifest.
        provider: where it ran.
        kernels: what computed; see `qtool_runtime.Model.kernels`.
        kl: KL(reference || artifact) per token, in nats.
        histogram: the same divergences, counted.
        top1_agreement: share of the positions where both find the same token the most probable.
        perplexity: of the text.
        weight_errors: of its matrices; see `weight_error`.
        accuracy: share of tasks solved; only for artifacts of the embedded model.
    """

    artifact: str
    name: str
    target: str
    size: int
    provider: str
    kernels: str
    kl: Distribution
    histogram: Histogram
    top1_agreement: float
    perplexity: float
    weight_errors: tuple[WeightError, ...]
    accuracy: Score | None


@dataclass(frozen=True)
class Report:
    """A whole evaluation.

    Attributes:
        reference: name of the model that artifacts were compared with, in float32.
        reference_perplexity: of the text.
        reference_accuracy: share of tasks solved; only for the embedded model.
        text: name of the text.
        text_sha256: of the text, in hex.
        tokens: predictions that were compared.
        window: tokens that see each other.
        onnxruntime: its version.
        peak_memory: most bytes of memory that this process has held, as far as the system tells.
        artifacts: one report each, in the order of the question.
    """

    reference: str
    reference_perplexity: float
    reference_accuracy: Score | None
    text: str
    text_sha256: str
    tokens: int
    window: int
    onnxruntime: str
    peak_memory: int | None
    artifacts: tuple[ArtifactReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain data."""
        return asdict(self)


def quality(tally: Tally, reference: Tally, *, window: int, text_sha256: str, provider: str) -> Quality:
    """Returns the record for an artifact's manifest.

    Figures are rounded to six digits: the last ones depend on the processor that measured.

    Args:
        tally: of the artifact.
        reference: of the reference.
        window: tokens that saw each other.
        text_sha256: of the text, in hex.
        provider: where the artifact ran.
    """
    kl = Distribution.of(tally.divergences)
    return Quality(
        kl_mean=_rounded(kl.mean),
        kl_standard_error=_rounded(kl.standard_error),
        kl_median=_rounded(kl.median),
        kl_p99=_rounded(kl.p99),
        top1_agreement=_rounded(tally.agreement),
        perplexity=_rounded(tally.perplexity),
        source_perplexity=_rounded(reference.perplexity),
        tokens=len(tally.divergences),
        window=window,
        text_sha256=text_sha256,
        provider=provider,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
