"""Matrices for CI systems: what they hold, that the systems' own formats read them, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qtool_targets
from qtool.errors import QtoolError
from qtool.matrix import MatrixJob, matrix_jobs, matrix_text
from qtool_targets import TargetError

yaml = pytest.importorskip("yaml")

MODELS = ["Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen3-0.6B@main", "./models/coder-q4_k_m.gguf"]


def test_every_model_meets_every_target_once() -> None:
    jobs = matrix_jobs(MODELS, ["x64-int4", "web-int4", "x64-int4"])
    assert jobs == [
        MatrixJob("Qwen2.5-0.5B-Instruct-x64-int4", MODELS[0], "x64-int4"),
        MatrixJob("Qwen2.5-0.5B-Instruct-web-int4", MODELS[0], "web-int4"),
        MatrixJob("Qwen3-0.6B-main-x64-int4", MODELS[1], "x64-int4"),
        MatrixJob("Qwen3-0.6B-main-web-int4", MODELS[1], "web-int4"),
        MatrixJob("coder-q4_k_m-x64-int4", MODELS[2], "x64-int4"),
        MatrixJob("coder-q4_k_m-web-int4", MODELS[2], "web-int4"),
    ]


def test_all_stands_for_every_profile() -> None:
    assert [job.target for job in matrix_jobs(MODELS[:1], ["all"])] == qtool_targets.names()


def test_a_target_file_is_named_by_what_it_says(tmp_path: Path) -> None:
    from importlib import resources

    text = (resources.files(qtool_targets) / "x64-int4.toml").read_text("utf-8")
    file = tmp_path / "board.toml"
    file.write_text(text.replace('name = "x64-int4"', 'name = "mine"'))
    assert matrix_jobs(["a/b"], [str(file)]) == [MatrixJob("b-mine", "a/b", str(file))]


def test_github_takes_one_line_for_fromjson() -> None:
    """An output of a step is one line of `name=value`; `include` lists whole jobs."""
    jobs = matrix_jobs(MODELS, ["all"])
    text = matrix_text(jobs, "github")
    assert "\n" not in text
    assert json.loads(text) == {"include": [vars(job) for job in jobs]}
    assert all(isinstance(value, str) for job in json.loads(text)["include"] for value in job.values())


def test_gitlab_reads_its_pipeline_as_yaml() -> None:
    jobs = matrix_jobs(MODELS, ["x64-int4", "arm64-int8"])
    pipeline = yaml.safe_load(matrix_text(jobs, "gitlab"))
    assert list(pipeline) == ["build"]
    build = pipeline["build"]
    assert build["parallel"]["matrix"] == [
        {"NAME": job.name, "MODEL": job.model, "TARGET": job.target} for job in jobs
    ]
    assert all(isinstance(line, str) for line in build["script"])
    assert build["artifacts"]["paths"] == ["$NAME"]


def test_the_commands_of_gitlabs_pipeline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the installation: words of names stay together, and options are those of `qtool`."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    source = tmp_path / "a model"
    shutil.copytree(Path(qtool_targets.__file__).parents[2] / "toolchain/qtool/nano/model", source)
    (job,) = matrix_jobs([str(source)], ["x64-int4"])
    build = yaml.safe_load(matrix_text([job], "gitlab"))["build"]
    (variables,) = build["parallel"]["matrix"]
    settings = "".join(f"{key}={shlex.quote(value)}\n" for key, value in variables.items())
    script = 'set -eu\nqtool() { python3 -m qtool "$@"; }\n' + settings + "\n".join(build["script"][1:])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True, env={**os.environ, "PATH": path})
    assert (tmp_path / job.name / "manifest.json").is_file()


def test_gitlab_puts_no_variables_into_names() -> None:
    text = matrix_text([MatrixJob("a", "./$HOME/model", "x64-int4")], "gitlab")
    assert json.loads(text)["build"]["parallel"]["matrix"][0]["MODEL"] == "./$$HOME/model"


def test_jobs_of_one_name_are_refused() -> None:
    with pytest.raises(QtoolError, match="two jobs would be called model-x64-int4"):
        matrix_jobs(["one/model", "other/model"], ["x64-int4"])


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(TargetError, match="unknown target 'x65'"):
        matrix_jobs(["a/b"], ["x65"])


@pytest.mark.parametrize(("system", "most"), [("github", 256), ("gitlab", 200)])
def test_more_jobs_than_the_system_takes_are_refused(system: str, most: int) -> None:
    jobs = [MatrixJob(f"job-{index}", "a/b", "x64-int4") for index in range(most + 1)]
    matrix_text(jobs[:most], system)
    for wrong in (jobs, []):
        with pytest.raises(QtoolError, match=f"would have {len(wrong)} jobs; {system} takes 1 to {most}"):
            matrix_text(wrong, system)
