"""The cache of builds: what is taken from it, what it survives, and what makes room for what."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import qtool
import qtool_targets
from qtool.artifact.verify import verify
from qtool.build_cache import DEFAULT_BYTES, BuildCache, default_cache
from qtool.cache_key import job_key
from qtool.errors import OutputError, QtoolError
from qtool.jobs import Evaluation, Job, plan_jobs
from qtool.pipeline import run_jobs
from support.fixtures import Checkpoints
from support.tiny import write_tiny_checkpoint
from toolchain.artifact.test_reproducible import digests


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> BuildCache:
    return BuildCache(tmp_path / "cache", say=said.append)


@pytest.fixture
def source(tiny_checkpoint: Checkpoints) -> Path:
    return tiny_checkpoint("qwen2").folder


def test_a_repeated_build_is_the_artifact_itself(
    tmp_path: Path, source: Path, cache: BuildCache, said: list[str]
) -> None:
    stages: list[str] = []
    one = qtool.build(source, target="x64-int4", output=tmp_path / "one", cache=cache)
    other = qtool.build(
        source,
        target="x64-int4",
        output=tmp_path / "other",
        cache=cache,
        progress=lambda stage, done, total: stages.append(stage),
    )
    assert (one.from_cache, other.from_cache, stages, said) == (False, True, [], [])
    assert digests(one.path) == digests(other.path)
    assert not verify(other.path).problems
    assert one.manifest == other.manifest
    plain = qtool.build(source, target="x64-int4", output=tmp_path / "plain")
    assert digests(plain.path) == digests(other.path)


def test_weights_are_linked_and_what_one_edits_is_not(
    tmp_path: Path, source: Path, cache: BuildCache
) -> None:
    for name in ("one", "other"):
        qtool.build(source, target="x64-int4", output=tmp_path / name, cache=cache)
    (entry,) = cache.entries()
    for file in sorted(entry.path.iterdir()):
        links = file.stat().st_nlink
        assert links == (3 if file.name == "model.onnx.data" else 1), file.name
    (tmp_path / "one" / "genai_config.json").write_text("{}")
    again = qtool.build(source, target="x64-int4", output=tmp_path / "again", cache=cache)
    assert again.from_cache
    assert not verify(again.path).problems


def test_of_several_targets_only_those_are_built_that_are_not_there(
    tmp_path: Path, source: Path, cache: BuildCache
) -> None:
    qtool.build(source, target="x64-int8", output=tmp_path / "one", cache=cache)
    jobs = plan_jobs(source, ["x64-int4", "x64-int8", "web-int4"], output=tmp_path / "all")
    assert [built.from_cache for built in run_jobs(jobs, cache=cache)] == [False, True, False]
    for job in jobs:
        assert not verify(job.output).problems
    again = [replace(job, output=tmp_path / "again" / job.target.name) for job in jobs]
    assert all(built.from_cache for built in run_jobs(again, cache=cache))


def test_a_failing_build_leaves_neither_artifacts_nor_entries(
    tmp_path: Path, source: Path, cache: BuildCache
) -> None:
    qtool.build(source, target="x64-int8", output=tmp_path / "one", cache=cache)
    jobs = plan_jobs(source, ["x64-int8", "x64-int4"], output=tmp_path / "both")
    strict = qtool_targets.with_gates(jobs[1].target, qtool_targets.Gates(max_size_mb=0.001))
    with pytest.raises(QtoolError, match="the gate is"):
        run_jobs([jobs[0], replace(jobs[1], target=strict)], cache=cache)
    assert not (tmp_path / "both").exists()
    assert len(cache.entries()) == 1


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": lambda entry: flip(entry / "model.onnx.data"),
    "the manifest": lambda entry: flip(entry / "manifest.json"),
    "a missing file": lambda entry: (entry / "tokenizer.json").unlink(),
    "no manifest": lambda entry: (entry / "manifest.json").unlink(),
    "an end": lambda entry: os.truncate(entry / "model.onnx", 10),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_named_and_built_again(
    damage: str, tmp_path: Path, source: Path, cache: BuildCache, said: list[str]
) -> None:
    first = qtool.build(source, target="x64-int4", output=tmp_path / "one", cache=cache)
    before = digests(first.path)
    (entry,) = cache.entries()
    DAMAGES[damage](entry.path)
    again = qtool.build(source, target="x64-int4", output=tmp_path / "again", cache=cache)
    assert not again.from_cache
    assert len(said) == 1
    assert "damaged, and built again" in said[0]
    assert digests(again.path) == before
    assert qtool.build(source, target="x64-int4", output=tmp_path / "third", cache=cache).from_cache
    assert len(said) == 1


def changed(job: Job) -> dict[str, Job]:
    """Jobs that differ from `job` in one thing that the artifact depends on."""
    target = job.target
    return {
        "target": replace(job, target=replace(target, description="Another one")),
        "gates": replace(job, target=qtool_targets.with_gates(target, qtool_targets.Gates(max_kl=9))),
        "context": replace(job, context=job.context // 2),
        "evaluation": replace(job, evaluation=Evaluation()),
        "name": replace(job, checkpoint=replace(job.checkpoint, name="other")),
        "revision": replace(job, checkpoint=replace(job.checkpoint, revision="abc")),
        "weights": replace(job, checkpoint=replace(job.checkpoint, sha256=lambda: {"model": "0" * 64})),
        "tokenizer": replace(
            job, checkpoint=replace(job.checkpoint, tokenizer_files=lambda: {"tokenizer.json": b"{}"})
        ),
        "config": replace(
            job,
            checkpoint=replace(job.checkpoint, config=replace(job.checkpoint.config, rms_norm_eps=0.5)),
        ),
    }


def test_what_bits_may_be_spent_is_in_the_key(source: Path) -> None:
    jobs = [plan_jobs(source, ["x64-int4"], recipe="best", target_bpw=bits)[0] for bits in (4.7, 4.7, 4.8)]
    one, same, more = (job_key(job) for job in jobs)
    assert one == same
    assert one != more


def test_everything_that_the_artifact_depends_on_is_in_the_key(source: Path, tmp_path: Path) -> None:
    (job,) = plan_jobs(source, ["x64-int4"])
    keys = {name: job_key(other) for name, other in changed(job).items()}
    calibrations = [{"recipe": "balanced"}, {"kv_cache": "int8"}]
    for choice in calibrations:
        text = tmp_path / "text.txt"
        text.write_text("Something to read. " * 2000)
        for calibration in (None, text):
            (other,) = plan_jobs(source, ["x64-int4"], calibration=calibration, **choice)  # type: ignore[arg-type]
            keys[f"{choice} {calibration}"] = job_key(other)
    assert len({job_key(job), *keys.values()}) == len(keys) + 1, keys


def test_what_the_artifact_does_not_depend_on_is_not_in_the_key(source: Path, tmp_path: Path) -> None:
    (job,) = plan_jobs(source, ["x64-int4"], threads=1)
    (other,) = plan_jobs(source, ["x64-int4"], threads=2, output=tmp_path / "elsewhere")
    assert job_key(job) == job_key(other)


def test_another_library_or_other_code_is_another_key(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qtool import cache_key

    (job,) = plan_jobs(source, ["x64-int4"])
    keys = {job_key(job)}
    version = cache_key.version
    monkeypatch.setattr(cache_key, "version", lambda name: "0.0" if name == "onnx-ir" else version(name))
    keys.add(job_key(job))
    monkeypatch.setattr(cache_key, "_code", lambda: "other")
    keys.add(job_key(job))
    assert len(keys) == 3


def test_a_changed_source_is_built_anew(tmp_path: Path, cache: BuildCache) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "source")
    qtool.build(checkpoint.folder, target="x64-int4", output=tmp_path / "one", cache=cache)
    (weights,) = checkpoint.folder.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-2:] = b"\x00\x3f"  # the last weight
    weights.write_bytes(content)
    other = qtool.build(checkpoint.folder, target="x64-int4", output=tmp_path / "other", cache=cache)
    assert not other.from_cache


SCRIPT = """
import sys
from pathlib import Path
import qtool
from qtool.build_cache import BuildCache
cache = BuildCache(Path(sys.argv[2]), say=lambda message: print("SAID", message))
for number in range(4):
    output = Path(sys.argv[3]) / str(number)
    artifact = qtool.build(sys.argv[1], target="x64-int4", output=output, cache=cache)
    print(artifact.from_cache)
    if number == 1:
        cache.clear()
"""


def test_builds_at_the_same_time_do_not_disturb_each_other(tmp_path: Path, source: Path) -> None:
    """Also while one of them drops what the other is about to take."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, source, tmp_path / "cache", tmp_path / str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    answers = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert not any("SAID" in answer for answer in answers), answers
    folders = [tmp_path / str(number) / str(build) for number in range(3) for build in range(4)]
    first = digests(folders[0])
    assert all(digests(folder) == first for folder in folders)
    entries = [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    assert all(digests(entry) == first for entry in entries)


class TestRoom:
    def store(self, cache: BuildCache, key: str, size: int, tmp_path: Path, when: float) -> None:
        folder = tmp_path / "made" / key
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(size))
        cache.store(key * 64, folder)
        if (cache.folder / (key * 64)).exists():
            os.utime(cache.folder / (key * 64), (when, when))

    def keys(self, cache: BuildCache) -> list[str]:
        return [entry.path.name[0] for entry in cache.entries()]

    def test_what_has_not_been_used_for_longest_goes_first(self, tmp_path: Path) -> None:
        cache = BuildCache(tmp_path / "cache", most_bytes=1000)
        for when, key in enumerate("abc"):
            self.store(cache, key, 300, tmp_path, when)
        os.utime(cache.folder / ("a" * 64), (10, 10))  # as if it had been used
        self.store(cache, "d", 300, tmp_path, 11)
        assert self.keys(cache) == ["d", "a", "c"]
        self.store(cache, "e", 900, tmp_path, 12)
        assert self.keys(cache) == ["e"]

    def test_what_is_larger_than_the_cache_is_not_kept(self, tmp_path: Path) -> None:
        cache = BuildCache(tmp_path / "cache", most_bytes=1000)
        self.store(cache, "a", 300, tmp_path, 1)
        self.store(cache, "b", 1001, tmp_path, 2)
        assert self.keys(cache) == ["a"]

    def test_taking_an_entry_counts_as_use(self, tmp_path: Path, source: Path, cache: BuildCache) -> None:
        qtool.build(source, target="x64-int4", output=tmp_path / "one", cache=cache)
        (entry,) = cache.entries()
        os.utime(entry.path, (5, 5))
        qtool.build(source, target="x64-int4", output=tmp_path / "other", cache=cache)
        assert cache.entries()[0].last_used > 5

    def test_clearing_drops_everything(self, tmp_path: Path) -> None:
        cache = BuildCache(tmp_path / "cache")
        assert (cache.entries(), cache.clear()) == ([], 0)
        for key in "ab":
            self.store(cache, key, 10, tmp_path, 1)
        (cache.folder / "notes.txt").touch()  # not ours
        (cache.folder / f".{'c' * 64}.gone-1").mkdir()
        assert cache.clear() == 20
        assert [path.name for path in cache.folder.iterdir()] == ["notes.txt"]


def test_a_cache_that_cannot_be_written_does_not_fail_the_build(
    tmp_path: Path, source: Path, said: list[str]
) -> None:
    (tmp_path / "file").touch()
    cache = BuildCache(tmp_path / "file" / "cache", say=said.append)
    artifact = qtool.build(source, target="x64-int4", output=tmp_path / "one", cache=cache)
    assert not verify(artifact.path).problems
    assert len(said) == 1
    assert "is not kept in the cache" in said[0]


def test_a_cache_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for use in (BuildCache.entries, BuildCache.clear):
        with pytest.raises(OutputError, match=r"the cache .*file cannot be read: Not a directory"):
            use(BuildCache(tmp_path / "file"))


@pytest.mark.parametrize(
    ("variables", "folder", "size"),
    [
        ({"QTOOL_CACHE_DIR": "/a/b", "QTOOL_CACHE_BYTES": "5"}, "/a/b", 5),
        ({"XDG_CACHE_HOME": "/x"}, "/x/qtool/artifacts", DEFAULT_BYTES),
    ],
)
def test_variables_say_where_and_how_large(
    variables: dict[str, str], folder: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("QTOOL_CACHE_DIR", "QTOOL_CACHE_BYTES", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cache = default_cache()
    assert (cache.folder, cache.most_bytes) == (Path(folder), size)


@pytest.mark.parametrize("text", ["10 GB", "-1", "1e9", "9" * 30])
def test_a_size_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTOOL_CACHE_BYTES", text)
    with pytest.raises(QtoolError, match="valid is a whole number of bytes"):
        default_cache()
