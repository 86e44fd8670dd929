"""The README is true: its help texts are the commands' own, and its Python examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import qtool
from qtool.cli import cli
from support.places import shared_folder

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")

HELP_BLOCKS = re.findall(r"```text\n\$ qtool (.*?) ?--help\n(.*?)```", README, re.DOTALL)
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(
    ("command", "text"), HELP_BLOCKS, ids=[command or "qtool" for command, _ in HELP_BLOCKS]
)
def test_help_is_as_in_the_readme(command: str, text: str) -> None:
    result = CliRunner().invoke(cli, [*command.split(), "--help"], prog_name="qtool", terminal_width=100)
    assert result.exit_code == 0
    assert result.output.strip() == text.strip()


def test_every_command_has_its_help_in_the_readme() -> None:
    commands = set(CliRunner().invoke(cli, ["--help"]).output.split("Commands:")[1].split("\n"))
    names = {line.split()[0] for line in commands if line.strip()}
    assert {command for command, _ in HELP_BLOCKS} == names | {""}


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the artifact that the examples load."""
    folder = tmp_path_factory.mktemp("readme")
    qtool.build(target="x64-int4", output=folder / "nano-x64-int4")
    return folder


@pytest.mark.parametrize("code", EXAMPLES, ids=[str(index) for index in range(len(EXAMPLES))])
def test_python_examples_run(code: str, nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nano)
    exec(compile(code, "README.md", "exec"), {"__name__": "example"})


def test_the_table_of_targets_is_complete() -> None:
    import qtool_targets

    for name in qtool_targets.names():
        assert f"`{name}`" in README


MODELS = {
    "Qwen2.5-0.5B, Coder-0.5B": "Qwen2.5-0.5B-Instruct",
    "Qwen3-0.6B": "Qwen3-0.6B",
    "Qwen2.5-1.5B, Coder, Math": "Qwen2.5-1.5B-Instruct",
    "Qwen3-1.7B": "Qwen3-1.7B",
    "Qwen2.5-3B": "Qwen2.5-3B-Instruct",
    "Qwen3-4B": "Qwen3-4B",
}


@pytest.mark.parametrize("title", MODELS)
def test_the_advice_is_what_the_plan_says(title: str) -> None:
    """Sizes and memory in the table of models and devices, to a tenth of a GB."""
    from qtool.jobs import plan_jobs

    targets = ("android-arm64-int4", "x64-int4", "x64-int8", "cuda-fp16")
    shared = shared_folder()
    if shared is None:
        pytest.skip("no folder `shared` with the official configurations")
    folder = shared / "real-models" / "configs" / MODELS[title]
    row, _ = [line for line in README.splitlines() if line.startswith(f"| {title} |")]
    cells = [cell.strip() for cell in row.split("|")[2:6]]
    plans = [job.plan for job in plan_jobs(folder, targets, plan_only=True)]
    expected = [
        f"{plan.artifact / 1e9:.1f} GB, {plan.device.peak / 1e9:.1f} GB{'' if plan.fits else ' (over)'}"
        for plan in plans
    ]
    assert cells == expected


@pytest.mark.parametrize("title", MODELS)
def test_what_fits_a_phone_is_what_the_plan_says(title: str) -> None:
    from qtool.jobs import plan_jobs

    shared = shared_folder()
    if shared is None:
        pytest.skip("no folder `shared` with the official configurations")
    folder = shared / "real-models" / "configs" / MODELS[title]
    _, row = [line for line in README.splitlines() if line.startswith(f"| {title} |")]
    (job,) = plan_jobs(folder, ["android-arm64-int4"], plan_only=True)
    contexts = [f"{phone.context:,} tokens" if phone.context else "too large" for phone in job.plan.phones]
    cells = [cell.strip() for cell in row.split("|")[2:6]]
    assert cells == [f"{job.plan.artifact / 1e9:.1f} GB", *contexts]


@pytest.mark.parametrize(("system", "jobs"), [("github", {"plan", "build"}), ("gitlab", {"plan", "build"})])
def test_workflows_parse_and_the_matrix_is_theirs(system: str, jobs: set[str]) -> None:
    """The line of a workflow that asks for a matrix gets one of the system's form."""
    yaml = pytest.importorskip("yaml")
    (text,) = re.findall(rf"<!-- workflow: {system} -->\n```yaml\n(.*?)```", README, re.DOTALL)
    document = yaml.safe_load(text)
    assert set(document.get("jobs", document)) == jobs
    (command,) = re.findall(r"qtool (matrix [^)>\n]*)", text)
    result = CliRunner().invoke(cli, command.split(), prog_name="qtool")
    assert result.exit_code == 0, result.output
    matrix = yaml.safe_load(result.output)
    entries = matrix["include"] if system == "github" else matrix["build"]["parallel"]["matrix"]
    assert len(entries) == 2
    if system == "github":
        names = set(re.findall(r"matrix\.(\w+) ", text.replace("outputs.matrix", "")))
        assert names == set(entries[0])
