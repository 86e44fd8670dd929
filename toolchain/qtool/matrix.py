"""Models times targets as jobs of a CI system, one build each."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import qtool_targets
from qtool.checkpoint.naming import folder_name
from qtool.errors import OptionError

MOST_JOBS = {"github": 256, "gitlab": 200}
"""What `strategy.matrix` of GitHub Actions and `parallel:matrix` of GitLab may have."""


@dataclass(frozen=True)
class MatrixJob:
    """One build."""

    name: str
    """Of the job and of the folder to write: the model's last name, and the target."""
    model: str
    target: str


def matrix_jobs(models: Sequence[str], targets: Sequence[str]) -> list[MatrixJob]:
    """Returns a job for each model and target.

    Args:
        models: what `qtool build` takes: ids, folders, GGUF files. They are not looked at.
        targets: names of profiles, or paths of files; "all" stands for every profile that ships with qtool.

    Raises:
        TargetError: a target is unknown or malformed.
        OptionError: two jobs would have one name.
    """
    files = [name for target in targets for name in (qtool_targets.names() if target == "all" else [target])]
    named = {file: qtool_targets.load(file).name for file in files}
    jobs = [
        MatrixJob(f"{_last_name(model)}-{name}", model, file)
        for model in models
        for file, name in named.items()
    ]
    for name, count in Counter(job.name for job in jobs).items():
        if count > 1:
            raise OptionError(
                f"two jobs would be called {name}",
                hint="Give each model and each target once, and models with names of their own.",
            )
    return jobs


def _last_name(model: str) -> str:
    last = re.split(r"[/\\]", model.rstrip("/\\"))[-1]
    return folder_name(re.sub(r"\.gguf$", "", last, flags=re.IGNORECASE))


def matrix_text(jobs: Sequence[MatrixJob], system: str) -> str:
    """Returns a matrix as the CI system reads it.

    Args:
        jobs: the builds.
        system: one of `MOST_JOBS`.

    Returns:
        For "github", one line of JSON, the value of `strategy.matrix`. For "gitlab", a whole pipeline for
        `trigger: include`, in JSON, which is YAML as well.

    Raises:
        OptionError: the system takes no matrix of so many jobs, or of none.
    """
    if not 1 <= len(jobs) <= MOST_JOBS[system]:
        raise OptionError(
            f"the matrix would have {len(jobs)} jobs; {system} takes 1 to {MOST_JOBS[system]}",
            hint="Split the models or the targets over several matrices.",
        )
    if system == "github":
        return json.dumps({"include": [vars(job) for job in jobs]}, ensure_ascii=True)
    return json.dumps({"build": _gitlab_job(jobs)}, indent=2, ensure_ascii=True)


def _gitlab_job(jobs: Sequence[MatrixJob]) -> dict[str, object]:
    """Returns a job whose variables differ; the shell that runs it sees their values."""
    return {
        "image": "python:3.12",
        "parallel": {
            "matrix": [
                {"NAME": job.name, "MODEL": _literal(job.model), "TARGET": _literal(job.target)}
                for job in jobs
            ]
        },
        "script": [
            "python -m pip install 'qtool-edge[build,cpu]'",
            'qtool build "$MODEL" --target "$TARGET" -o "$NAME"',
            'qtool verify "$NAME"',
        ],
        "artifacts": {"name": "$NAME", "paths": ["$NAME"]},
    }


def _literal(value: str) -> str:
    """Returns a value in which GitLab puts no variables."""
    return value.replace("$", "$$")
