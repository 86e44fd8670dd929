"""The default number of threads follows affinity and the limits of control groups, version 1 and 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qtool_runtime import load
from qtool_runtime.errors import GenerationError
from qtool_runtime.threads import (
    DEFAULT_SPIN,
    Threads,
    check_threads,
    cpu_quota,
    default_threads,
    large_cores,
)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V1_MEMBERSHIP = "5:memory:/x\n3:cpu,cpuacct:/docker/abc\n0::/\n"
V1 = "sys/fs/cgroup/cpu,cpuacct"

QUOTAS = {
    "no files": ({}, None),
    "version 2, container": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
    "version 2, no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    "version 2, tightest of parents": (
        {
            "proc/self/cgroup": "0::/user/app\n",
            "sys/fs/cgroup/user/app/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/user/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
        },
        2.0,
    ),
    "version 2, other namespace": (
        {"proc/self/cgroup": "0::/../../elsewhere\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
        0.5,
    ),
    "version 1, host path": (
        {
            "proc/self/cgroup": V1_MEMBERSHIP,
            f"{V1}/docker/abc/cpu.cfs_quota_us": "300000\n",
            f"{V1}/docker/abc/cpu.cfs_period_us": "100000\n",
        },
        3.0,
    ),
    "version 1, only the group is mounted": (
        {
            "proc/self/cgroup": V1_MEMBERSHIP,
            f"{V1}/cpu.cfs_quota_us": "25000\n",
            f"{V1}/cpu.cfs_period_us": "50000\n",
        },
        0.5,
    ),
    "version 1, no limit": (
        {
            "proc/self/cgroup": V1_MEMBERSHIP,
            f"{V1}/cpu.cfs_quota_us": "-1\n",
            f"{V1}/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    "malformed": (
        {"proc/self/cgroup": "nonsense\n0::/\n::::\n", "sys/fs/cgroup/cpu.max": "many of\n"},
        None,
    ),
    "zero period": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100 0\n"}, None),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_quota(tmp_path: Path, name: str) -> None:
    files, expected = QUOTAS[name]
    assert cpu_quota(tree(tmp_path, files)) == expected


@pytest.mark.parametrize(("cpu_max", "expected"), [("max", 8), ("250000", 3), ("10000", 1), ("6400000", 8)])
def test_default_is_affinity_bounded_by_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_max: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    root = tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{cpu_max} 100000\n"})
    assert default_threads(root) == expected


def test_systems_without_affinity_count_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for count, expected in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert default_threads(tmp_path) == expected


@pytest.mark.parametrize("threads", [0, -1, 1025, 1.0, True, "2"])
def test_bad_counts_are_refused(threads: object) -> None:
    with pytest.raises(GenerationError, match=r"threads is .*; valid: None, or an integer from 1 to 1024"):
        check_threads(threads, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("spin", [-1, 1.5, True, "0", 10**9])
def test_bad_spins_are_refused(spin: object) -> None:
    with pytest.raises(GenerationError, match=r"spin is .*; valid: None, or microseconds from 0"):
        check_threads(1, spin)  # type: ignore[arg-type]


def test_given_values_are_taken() -> None:
    assert check_threads(3, 500) == Threads(3, 500)
    assert check_threads(None, None) == Threads(default_threads(), DEFAULT_SPIN)
    assert default_threads() >= 1


def test_spinning_is_settable_up_to_the_session(artifact: Path) -> None:
    for spin, awake in ((0, "0"), (500, "1")):
        with load(artifact, threads=2, spin=spin) as model:
            options = model._engine.graph.inference.get_session_options()
            assert options.intra_op_num_threads == 2
            assert options.get_session_config_entry("session.intra_op.allow_spinning") == awake


@pytest.mark.parametrize(
    ("name", "speeds", "expected"),
    [
        ("cpu_capacity", [380, 380, 380, 380, 870, 870, 870, 1024], [4, 5, 6, 7]),
        ("cpu_capacity", [1024] * 8, list(range(8))),
        ("cpufreq/cpuinfo_max_freq", [1_800_000, 1_800_000, 3_000_000, 4_000_000], [2, 3]),
        ("cpufreq/cpuinfo_max_freq", [2_000_000, 2_400_000], [0, 1]),
        ("unknown", [1, 2, 3], [0, 1, 2]),
    ],
)
def test_only_large_cores_count(tmp_path: Path, name: str, speeds: list[int], expected: list[int]) -> None:
    for number, speed in enumerate(speeds):
        path = tmp_path / f"sys/devices/system/cpu/cpu{number}" / name
        path.parent.mkdir(parents=True)
        path.write_text(f"{speed}\n")
    assert large_cores(range(len(speeds)), tmp_path) == expected


def test_a_process_that_is_bound_to_small_cores_takes_them_all(tmp_path: Path) -> None:
    for number, speed in enumerate([380, 380, 1024]):
        path = tmp_path / f"sys/devices/system/cpu/cpu{number}/cpu_capacity"
        path.parent.mkdir(parents=True)
        path.write_text(str(speed))
    assert large_cores([0, 1], tmp_path) == [0, 1]
