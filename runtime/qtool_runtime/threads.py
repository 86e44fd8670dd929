"""How many threads this process may use: its CPU affinity and the quota of its control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path

from qtool_runtime.errors import GenerationError


def default_threads(root: Path = Path("/")) -> int:
    """Returns the CPUs that this process may keep busy, at least 1.

    All logical CPUs count: on virtual machines two of them are often one core's, and the INT4 kernels still
    gain from the second.

    Args:
        root: where /proc and /sys are; tests give another.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux and Android
    available = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = cpu_quota(root)
    return max(1, min(available, available if quota is None else math.ceil(quota)))


def check_threads(threads: int | None) -> int:
    """Returns `threads`, or the default for None.

    Raises:
        GenerationError: it is not an integer from 1 to 1024.
    """
    if threads is None:
        return default_threads()
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= 1024:
        raise GenerationError(f"threads is {threads!r}; valid: None, or an integer from 1 to 1024")
    return threads


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
