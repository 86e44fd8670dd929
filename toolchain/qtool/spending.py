"""How many bytes the matrices of an artifact may take, from what was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qtool.checkpoint.config import QwenConfig
from qtool.errors import GateError, OptionError
from qtool.passes.capabilities import capabilities_for
from qtool.plan import Plan, scale_bytes
from qtool.quantize.choices import GROUP_SIZES, Choices, choices_for
from qtool.quantize.formats import Formats
from qtool_runtime.manifest import QuantizedGroup, SpentBits
from qtool_targets import Target


@dataclass(frozen=True)
class BitBudget:
    """Bytes for the matrices of one artifact, and what they can be spent on."""

    nbytes: int
    choices: Choices

    @property
    def is_scarce(self) -> bool:
        """Whether it matters what it is spent on: not everything can have the best format."""
        return self.nbytes < self.choices.most_bytes

    def spent(self, groups: Sequence[QuantizedGroup]) -> SpentBits:
        """Returns what the manifest says about it."""
        size = sum(group.bytes for group in groups if group.bits <= 8)
        return SpentBits(self.nbytes, size, self.choices.weights)


def bit_budget(
    config: QwenConfig,
    target: Target,
    room: float | None,
    *,
    formats: Formats,
    plan: Plan,
    bits_per_weight: float | None,
) -> BitBudget | None:
    """Returns what matrices may take: what the artifact's largest size or the bits a weight leave for them.

    Of several limits the smallest one holds.

    Args:
        config: the model.
        target: the profile; its gate of size counts.
        room: what matrices may take at most, relative to the target's formats; None for as much as the other
            limits leave.
        formats: what the target asks for.
        plan: with these formats.
        bits_per_weight: over all matrices that have a choice, scales and zero points included.

    Raises:
        GateError: less is asked for than is possible.
        OptionError: bits are to be spent, but there is nothing to choose.
    """
    capabilities = capabilities_for(target)
    kinds = [True] if capabilities.supports_implied_zero_points else []
    if capabilities.supports_zero_points and not target.weights.symmetric:
        kinds.append(False)
    choices = choices_for(
        config,
        formats,
        bits=capabilities.matmul_bits,
        kinds=kinds,
        scale_bytes=scale_bytes(target),
    )
    if not choices.schemes:
        if bits_per_weight is not None:
            raise OptionError(
                f"{bits_per_weight:g} bits a weight would not be used: no matrix can have another format than"
                f" target {target.name} says",
                hint=f"Groups of {', '.join(map(str, GROUP_SIZES))} divide no matrix's input features; leave"
                " --target-bpw out.",
            )
        return None
    usual = choices.nbytes(formats)
    limits = []
    if bits_per_weight is not None:
        limits.append(int(bits_per_weight * choices.weights / 8))
        if limits[-1] < choices.fewest_bytes:
            least = math.ceil(800 * choices.fewest_bytes / choices.weights) / 100
            raise GateError(
                f"target {target.name}: {bits_per_weight:g} bits a weight are less than is possible",
                hint=f"Ask for {least:g} or more; the target's own formats take"
                f" {8 * usual / choices.weights:.2f}.",
            )
    if (most := target.gates.max_size_mb) is not None:
        rest = plan.artifact - usual
        limits.append(int(most * 1e6) - rest)
        if limits[-1] < choices.fewest_bytes:
            least = math.ceil((rest + choices.fewest_bytes) / 1e5) / 10
            raise GateError(
                f"target {target.name}: an artifact of {most:g} MB is smaller than is possible",
                hint=f"Ask for {least:,g} MB or more; with the target's own formats it has"
                f" {plan.artifact / 1e6:,.1f} MB.",
            )
    if room is not None:
        limits.append(max(int(room * usual), choices.fewest_bytes))
    return BitBudget(min(limits), choices)
