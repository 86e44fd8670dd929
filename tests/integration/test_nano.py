"""nano, the model inside the package, end to end: what a build without a model gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

import qtool
import qtool_runtime
import qtool_targets
from qtool.artifact.verify import verify
from qtool.cli import cli
from qtool.evaluate.task import answer_with_calls
from qtool.nano.accuracy import Grades, measure
from qtool.nano.corpus import held_out

CPU_TARGETS = [name for name in qtool_targets.names() if qtool_targets.load(name).execution.provider == "cpu"]
EXAMPLES = 400
"""Held-out prompts per target: one more or less right moves the share by a quarter of a point."""

Built = Callable[[str], Path]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """`nano("x64-int4")`: built once."""

    @cache
    def build(target: str) -> Path:
        return qtool.build(target=target, output=tmp_path_factory.mktemp("nano") / target).path

    return build


@pytest.fixture(scope="module")
def grades(nano: Built) -> Callable[[str], Grades]:
    @cache
    def grade(target: str) -> Grades:
        with qtool_runtime.load(nano(target), threads=2) as model:
            return measure(
                lambda messages, thinking: answer_with_calls(model, messages, thinking), held_out(EXAMPLES)
            )

    return grade


def test_the_command_line_builds_and_asks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's first command."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    built = runner.invoke(cli, ["build", "--target", "x64-int4"])
    assert built.exit_code == 0, built.output
    assert (tmp_path / "nano-x64-int4" / "manifest.json").is_file()
    question = ["run", "nano-x64-int4", "Turn on the kitchen light", "--temperature", "0"]
    answered = runner.invoke(cli, question)
    assert answered.exit_code == 0, answered.output
    assert "kitchen" in answered.output


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_every_cpu_target_is_whole_and_knows_a_few_commands(nano: Built, target: str) -> None:
    folder = nano(target)
    assert verify(folder).problems == ()
    with qtool_runtime.load(folder) as model:
        for question, expected in (
            ("Turn on the kitchen light", "kitchen"),
            ("Turn off the lights in the bedroom", "bedroom"),
            ("What is 7 + 5?", "12"),
        ):
            given = answer_with_calls(model, [{"role": "user", "content": question}], thinking=False)
            assert expected in given, f"{question} -> {given}"


def test_the_source_is_named_without_a_path(nano: Built) -> None:
    from qtool_runtime import manifest

    document = manifest.read(nano("x64-int4"))
    assert (document.name, document.source.kind, document.source.id) == ("nano", "embedded", "nano")


def test_the_float32_artifact_answers_what_it_was_not_trained_on(grades: Callable[[str], Grades]) -> None:
    result = grades("x64-fp32")
    print(f"\nx64-fp32\n{result.table()}")
    assert result.share >= 0.95


@pytest.mark.parametrize(("target", "most"), [("x64-int8", 0.005), ("x64-int4", 0.01)])
def test_quantization_costs_little(grades: Callable[[str], Grades], target: str, most: float) -> None:
    lost = grades("x64-fp32").share - grades(target).share
    print(f"\n{target}: {grades(target).share:.1%}, {lost:+.1%} lost to float32")
    assert lost <= most
