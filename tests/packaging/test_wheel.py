"""The built wheel: what is inside, and that the runtime needs nothing of the compiler's."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import qtool
import qtool_targets

REPOSITORY = Path(__file__).parents[2]

BLOCKED = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "click",
    "rich",
    "gguf",
    "huggingface_hub",
    "qtool",
    "qtool_targets",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the working tree with the test environment's hatchling."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_three_packages_and_their_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"qtool", "qtool_targets", "qtool_runtime"}
    for target in qtool_targets.names():
        assert f"qtool_targets/{target}.toml" in names
    for package in top:
        assert f"{package}/py.typed" in names
    assert "qtool/nano/model/model.safetensors" in names
    assert {"qtool/evaluate/text.txt", "qtool/evaluate/page.html.jinja"} <= set(names)
    assert {"qtool/web/libraries.toml", "qtool/web/static/index.html"} <= set(names)
    assert "qtool/bench/worker.py" in names  # run by its path, by other interpreters too
    assert "qtool/calibration/text.txt" in names
    assert not [name for name in names if "test" in Path(name).name]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 7_000_000


@pytest.mark.slow
def test_the_runtime_works_from_the_wheel_without_the_compilers_packages(wheel: Path, tmp_path: Path) -> None:
    """On a device: the wheel with `cpu` only, and every package of the compiler made unimportable."""
    artifact = qtool.build(target="x64-int4", output=tmp_path / "artifact").path
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"{wheel}[cpu]"], check=True, capture_output=True)
    script = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
import qtool_runtime
with qtool_runtime.load({str(artifact)!r}) as model:
    stream = model.chat([{{"role": "user", "content": "Turn on the kitchen light"}}], temperature=0)
    stream.read()
    print(stream.message())  # a tool call
"""
    done = subprocess.run(
        [python, "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path, encoding="utf-8"
    )
    assert "kitchen" in done.stdout
    # huggingface_hub comes with tokenizers; the runtime does not import it.
    listed = subprocess.run([python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout
    names = {line.split()[0].lower() for line in listed.splitlines() if line.strip()}
    assert not names & {"torch", "transformers", "onnx", "onnx-ir", "gguf", "rich"}
