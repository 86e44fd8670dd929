"""Artifacts for 64-bit Arm: onnxruntime and onnxruntime-genai for aarch64 run them on emulated processors."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import qtool
import qtool_runtime
import qtool_targets
from qtool.emulate.emulator import Emulator
from qtool.emulate.processors import PROCESSORS
from qtool.emulate.verify import emulate
from support.emulation import ARM_TARGETS, build_root, genai_root, own_packages, runtime_root
from support.places import real_model
from support.tolerances import TOLERANCES

Built = Callable[[str], Path]
QUESTION = "Turn on the kitchen light"


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """`nano("arm64-int4")`: built once."""

    @cache
    def build(target: str) -> Path:
        return qtool.build(target=target, output=tmp_path_factory.mktemp("nano") / target).path

    return build


def test_profiles_say_that_an_emulated_processor_ran_them() -> None:
    """Those that the tests below run, and no others."""
    claimed = {
        name
        for name in qtool_targets.names()
        if any("emulated" in line for line in qtool_targets.load(name).tested_on)
    }
    assert claimed == set(ARM_TARGETS)


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("target", "processors"),
    [
        ("arm64-int4", list(PROCESSORS)),
        ("arm64-int8", list(PROCESSORS)),
        ("android-arm64-int4", ["cortex-a76"]),  # as arm64-int4, but for the context
    ],
)
def test_emulated_processors_give_the_answer_of_this_one(
    nano: Built, target: str, processors: list[str]
) -> None:
    runtime_root()  # skips where there is none
    tolerance = TOLERANCES["emulated"]
    found = emulate(nano(target), processors, prompt=QUESTION, tokens=32, timeout=300)
    assert [each.processor for each in found] == processors
    for each in found:
        assert each.comparison is not None, each.problem
        print(f"\n{target}: {each.check.detail}; logits {each.comparison.logit_distance:.1g}")
        assert each.problem == ""
        assert (each.comparison.tokens, each.comparison.same_tokens) == (32, 32)
        assert each.comparison.text.startswith("<think>\nTool: set_light. Values: room kitchen, state on.")
        assert each.comparison.kl_mean <= tolerance["divergence"]
        assert each.comparison.logit_distance <= tolerance["logits"]
        assert f"({each.processor} of qemu " in each.system
        assert " on aarch64 " in each.system


@pytest.mark.emulated
def test_an_int8_kv_cache_works_on_arm(tmp_path: Path) -> None:
    runtime_root()
    folder = qtool.build(target="arm64-int4", kv_cache="int8", output=tmp_path / "nano").path
    (found,) = emulate(folder, ["cortex-a72"], prompt=QUESTION, tokens=16, timeout=300)
    assert found.comparison is not None, found.problem
    assert (found.problem, found.comparison.same_tokens) == ("", 16)
    assert found.comparison.kl_mean <= TOLERANCES["emulated"]["divergence"]


@pytest.mark.emulated
def test_a_build_on_arm_has_the_same_bytes(nano: Built, tmp_path: Path) -> None:
    target = "arm64-int4"
    folder = nano(target)
    emulator = Emulator(build_root(), PROCESSORS["cortex-a76"])
    arguments = ["-m", "qtool", "build", "--target", target, "-o", str(tmp_path / "built")]
    emulator.run(arguments, packages=own_packages(), timeout=300)
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(path.name for path in (tmp_path / "built").iterdir()) == names
    for name in names:
        assert (tmp_path / "built" / name).read_bytes() == (folder / name).read_bytes(), name


GREEDY = """
import json, sys
import onnxruntime_genai as genai
model = genai.Model(sys.argv[1])
tokens = genai.Tokenizer(model).encode(sys.argv[2])
parameters = genai.GeneratorParams(model)
parameters.set_search_options(do_sample=False, max_length=len(tokens) + 24)
generator = genai.Generator(model, parameters)
generator.append_tokens(tokens)
answer = []
while len(answer) < 24:
    generator.generate_next_token()
    answer.append(int(generator.get_next_tokens()[0]))
print(json.dumps([[int(token) for token in tokens], answer]))
"""


@pytest.mark.emulated
@pytest.mark.parametrize("target", ARM_TARGETS)
def test_genai_for_arm_reads_and_writes_the_same_tokens(nano: Built, target: str) -> None:
    folder = nano(target)
    emulator = Emulator(genai_root(), PROCESSORS["cortex-a76"])
    with qtool_runtime.load(folder, threads=2) as model:
        prompt = model.chat_template.render([{"role": "user", "content": QUESTION}])
        tokens, answer = json.loads(emulator.run(["-c", GREEDY, str(folder), prompt], timeout=300))
        assert tokens == model.tokenizer.encode(prompt)
        stream = model.generate(prompt, max_tokens=24, ignore_eos=True)
        stream.read()
    assert answer == list(stream.token_ids)


@pytest.mark.emulated
@pytest.mark.real
@pytest.mark.slow
def test_a_real_model_gives_the_same_answer(tmp_path: Path) -> None:
    runtime_root()
    source = real_model("qwen2.5-coder-0.5b")
    if source is None:
        pytest.skip("no real checkpoint (QTOOL_REAL_MODELS)")
    folder = qtool.build(source, target="arm64-int4", output=tmp_path / "real").path
    (found,) = emulate(folder, ["cortex-a76"], prompt="Write a function.", tokens=4, timeout=600)
    print(f"\n{found.check.detail}")
    assert found.problem == ""
    assert found.comparison is not None
    assert found.comparison.same_tokens == 4
    assert found.comparison.kl_mean <= TOLERANCES["emulated"]["divergence_real"]
