"""What came of a benchmark.

`Report.to_dict` is the document that `qtool bench --json` prints. Its keys are stable:

- `artifact`, `name`, `target`: what was measured. `provider`, `threads`, `rounds`: how.
  `kernels`: what computed in qtool's runtime, "onnxruntime" for its own kernels.
- `lengths`: `prompts`, `depths` and `tokens` as measured, `turns`: tokens of each turn.
- `engines`: for each engine `version`, `model` and its figures: `import_seconds`, `load_seconds`,
  `start_seconds` (both together); `memory_bytes`, after loading (`loaded`) and at the `end`, each `resident`,
  `anonymous` and `peak`; `prompts`, by length `tokens_per_second` and `time_to_first_token_seconds`;
  `decode`, by depth `tokens_per_second`. A figure has `median`, `low`, `high` and `rounds`, the value of each
  round; a decode rate also has `turns`, a list for each round, whose median is the round's value. A figure
  that the system cannot give is null.
- `ratios`: for each peer, under the same keys, qtool's figures over the peer's. A round's ratio of decode
  rates is the median of the ratios of its turns.
- `skipped`: peer -> why it was not measured.
- `weight_bytes_per_token`; `read_bandwidth`, a figure in bytes per second; and `bandwidth_fraction`, how much
  of the best round's bandwidth qtool's best turn at the least depth used. The last two are null where the
  artifact does not run on the CPU, and the fraction also where nothing was decoded.
- `load_average`: of the system, before and after; null where there is none.

Numbers are rounded to five significant digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtool.bench.lengths import Lengths
from qtool.bench.measures import Measure, Spread, measures
from qtool.bench.rounds import Contender
from qtool_runtime.manifest import Manifest


@dataclass(frozen=True)
class Report:
    """The figures of all engines.

    Attributes:
        artifact: its folder.
        manifest: its manifest.
        provider: where it ran.
        threads: CPU threads of each engine.
        lengths: what was measured.
        ours: qtool's runtime.
        peers: the others.
        skipped: peer -> why it was not measured.
        read_bandwidth: bytes per second in each round, or None.
        load_average: before and after, or None.
    """

    artifact: Path
    manifest: Manifest
    provider: str
    threads: int
    lengths: Lengths
    ours: Contender
    peers: Sequence[Contender]
    skipped: Mapping[str, str]
    read_bandwidth: Spread | None
    load_average: tuple[float, float] | None

    @property
    def measures(self) -> list[Measure]:
        """What was measured."""
        return measures(self.lengths)

    @property
    def kernels(self) -> str | None:
        """What computed in qtool's runtime."""
        return self.ours.rounds[-1].kernels

    @property
    def weight_bytes_per_token(self) -> int:
        """Bytes of the weight matrices that each decoded token reads.

        An embedding that is not the LM head too is not among them: a token reads one row of it.
        """
        groups = self.manifest.quantization
        has_head = any(group.group == "lm_head" for group in groups)
        return sum(group.bytes for group in groups if not (has_head and group.group == "embedding"))

    @property
    def bandwidth_fraction(self) -> float | None:
        """The fraction of the machine's read bandwidth that decoding used, best against best."""
        if self.read_bandwidth is None or not self.lengths.depths:
            return None
        depth = min(self.lengths.depths)
        best = max(rate for figures in self.ours.rounds for rate in figures.decode[depth])
        return best * self.weight_bytes_per_token / self.read_bandwidth.high

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain data; see the top of this file."""
        lengths = self.lengths
        document = {
            "artifact": str(self.artifact),
            "name": self.manifest.name,
            "target": self.manifest.target.get("name"),
            "provider": self.provider,
            "kernels": self.kernels,
            "threads": self.threads,
            "rounds": len(self.ours.rounds),
            "lengths": {
                "prompts": list(lengths.prompts),
                "depths": list(lengths.depths),
                "tokens": lengths.tokens,
                "turns": list(lengths.turns),
            },
            "engines": {each.engine: self._engine(each) for each in (self.ours, *self.peers)},
            "ratios": {peer.engine: self._ratios(peer) for peer in self.peers},
            "skipped": dict(self.skipped),
            "weight_bytes_per_token": self.weight_bytes_per_token,
            "read_bandwidth": self.read_bandwidth and self.read_bandwidth.to_dict(),
            "bandwidth_fraction": self.bandwidth_fraction,
            "load_average": self.load_average,
        }
        rounded: dict[str, Any] = _rounded(document)
        return rounded

    def _engine(self, contender: Contender) -> dict[str, Any]:
        document: dict[str, Any] = {"version": contender.version, "model": str(contender.model)}
        for measure in self.measures:
            spread = measure.spread(contender)
            figure = spread and spread.to_dict()
            if figure and measure.path[0] == "decode":
                figure["turns"] = measure.turns(contender)
            _put(document, measure.path, figure)
        return document

    def _ratios(self, peer: Contender) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for measure in self.measures:
            spread = measure.ratio(self.ours, peer)
            _put(document, measure.path, spread and spread.to_dict())
        return document


def _put(document: dict[str, Any], path: Sequence[str], value: object) -> None:
    """Puts a value into nested dictionaries."""
    *folders, name = path
    for folder in folders:
        document = document.setdefault(folder, {})
    document[name] = value


def _rounded(value: Any) -> Any:
    """Rounds every float in nested data to five significant digits."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
