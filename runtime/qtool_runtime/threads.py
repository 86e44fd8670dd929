"""The threads of the kernels: how many this process may use, and how long they wait awake for work."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qtool_runtime.errors import GenerationError

DEFAULT_SPIN = 20
"""Microseconds. A token is some two hundred parallel sections, a few microseconds apart, so that this is
enough to stay awake from one to the next. Threads that spin for longer, 1,000 times as long by ONNX
Runtime's own default, take the processor from whoever could use it, the other threads of the same model
included, when a device has anything else to do."""

MAXIMUM_SPIN = 10_000_000


@dataclass(frozen=True)
class Threads:
    """How kernels share the processors.

    Attributes:
        count: threads, the calling one included.
        spin: microseconds for which a thread without work looks for some before it sleeps.
    """

    count: int
    spin: int

    @property
    def session_entries(self) -> dict[str, str]:
        """Entries of ONNX Runtime's session configuration; versions that do not know one ignore it."""
        return {
            "session.intra_op.allow_spinning": "1" if self.spin else "0",
            "session.intra_op.spin_duration_us": str(self.spin or 1),
        }


def default_threads(root: Path = Path("/")) -> int:
    """Returns the CPUs that this process may keep busy, at least 1.

    All logical CPUs count: on virtual machines two of them are often one core's, and the INT4 kernels still
    gain from the second. But of a processor with large and small cores only the large ones count: the threads
    share each matrix evenly, so that all would wait for the slowest.

    Args:
        root: where /proc and /sys are; tests give another.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux and Android
        available = len(large_cores(os.sched_getaffinity(0), root))
    else:
        available = os.cpu_count() or 1
    quota = cpu_quota(root)
    return max(1, min(available, available if quota is None else math.ceil(quota)))


def check_threads(count: int | None, spin: int | None) -> Threads:
    """Returns the settings, with defaults for None.

    Raises:
        GenerationError: `count` is not an integer from 1 to 1024, or `spin` is not a number of microseconds.
    """
    if count is None:
        count = default_threads()
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 1024:
        raise GenerationError(f"threads is {count!r}; valid: None, or an integer from 1 to 1024")
    if spin is None:
        spin = DEFAULT_SPIN
    if not isinstance(spin, int) or isinstance(spin, bool) or not 0 <= spin <= MAXIMUM_SPIN:
        raise GenerationError(
            f"spin is {spin!r}; valid: None, or microseconds from 0 (never) to {MAXIMUM_SPIN}"
        )
    return Threads(count, spin)


def large_cores(processors: Iterable[int], root: Path = Path("/")) -> list[int]:
    """Returns those of the processors that are at least half as fast as the fastest of them.

    The kernel's own estimate is used (`cpu_capacity`, on Arm and on hybrid x86), else the highest frequency.
    Where it tells neither of a processor, all are taken.
    """
    numbers = sorted(processors)
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        texts = [_read(root / f"sys/devices/system/cpu/cpu{number}" / name).strip() for number in numbers]
        if all(text.isdigit() for text in texts):
            speeds = [int(text) for text in texts]
            return [number for number, speed in zip(numbers, speeds, strict=True) if 2 * speed >= max(speeds)]
    return numbers


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Returns the tightest limit among this process's control groups, in CPUs, or None without a limit."""
    groups = root / "sys/fs/cgroup"
    limits = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:  # version 2: one tree for all controllers
            limits += [_limit_v2(folder) for folder in _folders(groups, path)]
        elif "cpu" in controllers.split(","):
            limits += [_limit_v1(folder) for folder in _folders(groups / controllers, path)]
    return min((limit for limit in limits if limit), default=None)


def _folders(mount: Path, path: str) -> list[Path]:
    """The group's folder and those above it: every one of them may set a limit.

    Inside a container the path can be the host's while only the group itself is mounted, so folders that
    are not there are normal.
    """
    folder = mount / path.strip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(mount))]


def _limit_v2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return _divide(quota, period)


def _limit_v1(folder: Path) -> float | None:
    return _divide(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _divide(quota: str, period: str) -> float | None:
    """Quota and period in microseconds to CPUs; None for "max", -1 (both: no limit) and missing files."""
    try:
        microseconds, every = int(quota), int(period)
    except ValueError:
        return None
    return microseconds / every if microseconds > 0 and every > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not Linux, another version of control groups, or not permitted
        return ""
