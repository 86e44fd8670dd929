"""`qtool verify --emulate`: the artifact runs here and on emulated processors, and both are compared."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import qtool_runtime
from qtool.artifact.verify import FAILED, PASSED, Check
from qtool.emulate import probe as probe_script
from qtool.emulate.cache import Note
from qtool.emulate.comparison import Comparison, compare
from qtool.emulate.emulator import CrashError, Emulator, find_qemu, qemu_version
from qtool.emulate.probe import Request, probe
from qtool.emulate.processors import PROCESSORS, Processor
from qtool.emulate.root import RUNTIME_MODULES, prepare_root, runtime_requirements
from qtool.errors import EmulationError, IncompatibleRuntimeError
from qtool_runtime import manifest
from qtool_runtime.threads import check_threads


@dataclass(frozen=True)
class Emulation:
    """One emulated processor's run of an artifact.

    Attributes:
        processor: qemu's name of it.
        summary: what it can do.
        system: what ran there: qemu, machine, Python and onnxruntime.
        comparison: with this processor; None where the run crashed.
        problem: why the artifact does not work there; empty if it does.
    """

    processor: str
    summary: str
    system: str
    comparison: Comparison | None
    problem: str

    @property
    def check(self) -> Check:
        """The result as one of an artifact's checks."""
        name = f"emulated {self.processor}"
        if self.problem or self.comparison is None:
            return Check(name, FAILED, self.problem)
        found = self.comparison
        tokens = f"{found.tokens} greedy tokens as on this processor"
        if found.same_tokens < found.tokens:
            tokens = f"{found.same_tokens} greedy tokens as on this processor, then two were about as likely"
        return Check(name, PASSED, f"{tokens}, KL {found.kl_mean:.1g}; {self.system}; {self.summary}")

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as plain data; figures that are no numbers are None, for JSON has none."""
        found = None
        if self.comparison is not None:
            items = asdict(self.comparison).items()
            found = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in items}
        return asdict(self) | {"comparison": found}


def emulate(
    folder: Path,
    processors: Sequence[str],
    *,
    prompt: str,
    tokens: int,
    threads: int | None = None,
    timeout: float,
    note: Note = lambda text: None,
) -> list[Emulation]:
    """Runs an artifact here and on emulated processors.

    Args:
        folder: the artifact, which is whole (see `artifact.verify`).
        processors: names of `PROCESSORS`.
        prompt: what the user says.
        tokens: how many to generate.
        threads: CPU threads; None for those that this process may use.
        timeout: seconds for each emulated processor.
        note: told what is done.

    Returns:
        A record of each processor. That a run crashed is one, too.

    Raises:
        EmulationError: the emulated system cannot be set up, or the time is up.
        QtoolError: the artifact does not run here.
    """
    folder = folder.absolute()
    provider = manifest.read(folder).graph.provider
    if provider != "cpu":
        raise IncompatibleRuntimeError(
            f"{folder} is for the provider {provider!r}; only artifacts for CPUs can run on an emulated one",
            hint="Build for a target such as arm64-int4.",
        )
    find_qemu()
    root = prepare_root(runtime_requirements(), RUNTIME_MODULES, note)
    with tempfile.TemporaryDirectory(prefix="qtool-emulate-") as name:
        here, there = Path(name) / "here.npy", Path(name) / "there.npy"
        count = check_threads(threads, None).count
        request = Request(str(folder), prompt, tokens, count, (), str(here))
        note("running on this processor")
        expected = probe(request)
        request = replace(request, answer=tuple(expected["answer"]), logits=str(there))
        found = []
        for processor in map(PROCESSORS.__getitem__, processors):
            note(f"running on {processor.name}")
            emulator = Emulator(root, processor)
            found.append(_run(emulator, request, expected, here, timeout))
            there.unlink(missing_ok=True)
    return found


def _run(
    emulator: Emulator, request: Request, expected: dict[str, Any], here: Path, timeout: float
) -> Emulation:
    processor: Processor = emulator.processor
    package = Path(qtool_runtime.__file__).parent
    try:
        output = emulator.run(
            [probe_script.__file__], packages=[package], text=request.to_json(), timeout=timeout
        )
    except CrashError as error:
        return Emulation(processor.name, processor.summary, "", None, error.message)
    try:
        findings = json.loads(output.strip().splitlines()[-1])
        logits = np.load(request.logits)
    except (ValueError, IndexError, OSError) as error:
        raise EmulationError(f"{processor.name} ended without an answer: {error}") from error
    result = compare(expected, findings, np.load(here), logits)
    system = (
        f"onnxruntime {findings['onnxruntime']}, Python {findings['python']} on {findings['machine']}"
        f" ({processor.name} of qemu {qemu_version()})"
    )
    problem = f"{processor.name}: {result.problem}" if result.problem else ""
    return Emulation(processor.name, processor.summary, system, result, problem)
