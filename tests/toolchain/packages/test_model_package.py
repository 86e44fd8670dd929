"""ONNX Runtime model packages: what is written, that onnxruntime opens it, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

import qtool_runtime
from qtool.artifact.verify import verify
from qtool.errors import ArtifactError, OutputError
from qtool.packages.model_package import write_model_package
from qtool_runtime import manifest
from qtool_runtime.compatibility import parse_version
from support import model_package_api
from support.fixtures import Artifacts
from toolchain.artifact.test_reproducible import digests

TARGETS = ("x64-int4", "cuda-int4", "web-int4", "directml-fp16")


@pytest.fixture
def artifacts(tiny_artifact: Artifacts) -> list[Path]:
    return [tiny_artifact(target) for target in TARGETS]


def opened_by_onnxruntime(folder: Path) -> dict[str, Any]:
    """What onnxruntime says of a package, through its C API."""
    script = Path(model_package_api.__file__)
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_variants_are_whole_artifacts_called_after_their_targets(
    artifacts: list[Path], tmp_path: Path
) -> None:
    package = write_model_package(artifacts, tmp_path / "package")
    assert package.variants == {
        "cuda-int4": "CUDAExecutionProvider",
        "directml-fp16": "DmlExecutionProvider",
        "web-int4": "WebGpuExecutionProvider",
        "x64-int4": "CPUExecutionProvider",
    }
    assert {entry.name for entry in package.path.iterdir()} == {*TARGETS, "manifest.json"}
    for target, artifact in zip(TARGETS, artifacts, strict=True):
        assert digests(package.path / target) == digests(artifact)
    assert package.bytes == sum(path.stat().st_size for path in package.path.rglob("*") if path.is_file())
    assert not verify(package.path / "x64-int4").problems
    with qtool_runtime.load(package.path / "x64-int4") as model:
        assert model.generate([1, 2, 3], max_tokens=2).read() is not None


def test_the_manifest_is_of_schema_1(artifacts: list[Path], tmp_path: Path) -> None:
    """The keys that its parser knows, and no others: it refuses those."""
    folder = write_model_package(artifacts, tmp_path / "package").path
    document = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert set(document) == {"schema_version", "package_name", "layout", "components", "additional_metadata"}
    assert (document["schema_version"], document["layout"]) == ("1.0", "portable")
    (component,) = document["components"].values()
    assert set(component) == {"variants"}
    for name, variant in component["variants"].items():
        assert set(variant) == {"variant_directory", "ep", "executor_info", "additional_metadata"}
        folder_of_variant = folder / variant["variant_directory"]
        assert folder_of_variant.name == name
        assert (folder_of_variant / variant["executor_info"]["ort"]["model_file"]).is_file()
        assert (folder_of_variant / "genai_config.json").is_file()
    assert not (folder / "genai_config.json").exists()  # else onnxruntime-genai takes it for a single model


@pytest.mark.skipif(
    (parse_version(onnxruntime.__version__) or (0,)) < (1, 31) or sys.platform != "linux",
    reason="onnxruntime opens model packages from 1.31 on; the test finds its library on Linux",
)
def test_onnxruntime_opens_it_and_gives_the_cpu_its_variant(artifacts: list[Path], tmp_path: Path) -> None:
    folder = write_model_package(artifacts, tmp_path / "package").path
    found = opened_by_onnxruntime(folder)
    inputs = len(manifest.read(artifacts[0]).graph.inputs) - 1  # num_logits is optional
    assert found["component"] == "model"
    assert found["providers"] == {
        "cuda-int4": "CUDAExecutionProvider",
        "directml-fp16": "DmlExecutionProvider",
        "web-int4": "WebGpuExecutionProvider",
        "x64-int4": "CPUExecutionProvider",
    }
    assert (found["selected"], found["inputs"]) == ("x64-int4", inputs)
    path = folder / "manifest.json"
    path.write_text(path.read_text("utf-8").replace('"layout"', '"outlay"'))
    assert "unknown field 'outlay'" in opened_by_onnxruntime(folder)["error"]  # so it does look


def test_order_and_destination_do_not_matter(artifacts: list[Path], tmp_path: Path) -> None:
    one = write_model_package(artifacts, tmp_path / "one").path
    other = write_model_package(artifacts[::-1], tmp_path / "elsewhere" / "other").path
    assert (one / "manifest.json").read_bytes() == (other / "manifest.json").read_bytes()


class TestRefusals:
    @pytest.fixture(autouse=True)
    def nothing_is_left(self, tmp_path: Path) -> Any:
        yield
        assert not (tmp_path / "package").exists()

    def test_of_different_models(self, tiny_artifact: Artifacts, tmp_path: Path) -> None:
        pair = [tiny_artifact("x64-int4"), tiny_artifact("cuda-int4", "qwen3")]
        with pytest.raises(ArtifactError, match=r"are of different models: tiny-qwen2 \(SHA-256 "):
            write_model_package(pair, tmp_path / "package")

    def test_of_one_target_twice(self, tiny_artifact: Artifacts, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="were both built for the target 'x64-int4'"):
            write_model_package([tiny_artifact("x64-int4")] * 2, tmp_path / "package")

    def test_of_two_variants_that_onnxruntime_cannot_tell_apart(
        self, tiny_artifact: Artifacts, tmp_path: Path
    ) -> None:
        pair = [tiny_artifact("x64-int4"), tiny_artifact("arm64-int4")]
        with pytest.raises(ArtifactError, match="both run on CPUExecutionProvider; of two such variants"):
            write_model_package(pair, tmp_path / "package")

    def test_of_what_is_no_artifact(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="is not an artifact"):
            write_model_package([tmp_path], tmp_path / "package")

    def test_of_a_damaged_artifact(self, tiny_artifact: Artifacts, tmp_path: Path) -> None:
        shutil.copytree(tiny_artifact("x64-int4"), tmp_path / "damaged")
        with (tmp_path / "damaged" / "model.onnx.data").open("r+b") as file:
            file.write(b"\x01\x02\x03\x04")
        with pytest.raises(ArtifactError, match=r"model\.onnx\.data has the SHA-256"):
            write_model_package([tmp_path / "damaged"], tmp_path / "package")


def test_force_replaces_a_package_and_nothing_else(artifacts: list[Path], tmp_path: Path) -> None:
    folder = write_model_package(artifacts[:1], tmp_path / "package").path
    with pytest.raises(OutputError, match="exists already"):
        write_model_package(artifacts, folder)
    write_model_package(artifacts, folder, force=True)
    assert (folder / "web-int4").is_dir()
    (folder / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"holds 'notes\.txt', which is no part of the package"):
        write_model_package(artifacts, folder, force=True)
    with pytest.raises(OutputError, match="is not a model package of qtool's"):
        write_model_package(artifacts, artifacts[0], force=True)
    with pytest.raises(OutputError, match="lies within the artifact"):
        write_model_package(artifacts, artifacts[1] / "package")
