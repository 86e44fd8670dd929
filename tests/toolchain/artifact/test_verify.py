"""`verify` finds every change to an artifact, and says which file it is in."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import qtool_runtime
from qtool.artifact.verify import FAILED, PASSED, SKIPPED, Report, verify
from qtool_runtime import manifest
from qtool_runtime.manifest import FileEntry, Manifest
from support.fixtures import Artifacts


@pytest.fixture
def folder(tiny_artifact: Artifacts, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_artifact("x64-int4", "qwen3"), tmp_path / "artifact")


def statuses(report: Report) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def details(report: Report) -> str:
    return "; ".join(check.detail for check in report.problems)


def rewrite(folder: Path, **changes: object) -> None:
    """Writes a manifest that is consistent in itself, with other content and today's file hashes."""
    document: Manifest = manifest.read(folder)
    files = tuple(
        FileEntry(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    )
    document = replace(document, **{"files": files, **changes})  # type: ignore[arg-type]
    (folder / "manifest.json").write_text(document.to_json(), "utf-8")


def test_an_untouched_artifact_passes_every_check(folder: Path) -> None:
    report = verify(folder)
    assert statuses(report) == {"manifest": PASSED, "files": PASSED, "graph": PASSED, "runtime": PASSED}
    assert report.problems == ()
    assert report.to_dict()["passed"] is True


@pytest.mark.parametrize("target", ["cuda-int4", "directml-fp16", "web-int4"])
def test_a_provider_that_this_machine_lacks_is_skipped_not_failed(
    tiny_artifact: Artifacts, target: str
) -> None:
    import onnxruntime

    report = verify(tiny_artifact(target))
    provider = {"cuda": "CUDA", "directml": "Dml", "web": "WebGpu"}[target.partition("-")[0]]
    there = f"{provider}ExecutionProvider" in onnxruntime.get_available_providers()
    assert statuses(report)["runtime"] == (PASSED if there else SKIPPED)
    assert report.problems == ()


def test_every_flipped_bit_is_found_and_the_file_named(folder: Path) -> None:
    chance = random.Random(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        places = {0, len(content) // 2, len(content) - 1, chance.randrange(len(content))}
        for place in sorted(places):
            changed = bytearray(content)
            changed[place] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            report = verify(folder)
            assert path.name in details(report), f"bit {place} of {path.name}"
            with pytest.raises(qtool_runtime.ArtifactError, match=path.name):
                qtool_runtime.load(folder, verify=True)
        path.write_bytes(content)
    assert not verify(folder).problems


def test_every_truncated_missing_emptied_or_longer_file_is_found(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for changed in (content[:-1], b"", content + b"\0", None):
            path.unlink() if changed is None else path.write_bytes(changed)
            report = verify(folder)
            assert path.name in details(report)
            with pytest.raises(qtool_runtime.ArtifactError, match=path.name):
                qtool_runtime.load(folder)
            path.write_bytes(content)
    assert not verify(folder).problems


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "deep/inside.bin", "model.onnx.data.bak"])
def test_a_file_too_many_is_found(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert f"{name} is not listed" in details(verify(folder))


def test_a_file_that_became_a_folder_is_found(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()
    assert "model.onnx is missing" in details(verify(folder))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"context": 256', '"context": 255'),
        ('"provider": "cpu"', '"provider": "CPU"'),
        ('"quality": null', '"quality":  null'),
        ('"format_version": 1', '"format_version": 2'),
        ('"path": "model.onnx"', '"path": "../model.onnx"'),
    ],
)
def test_an_edited_manifest_is_refused(folder: Path, old: str, new: str) -> None:
    text = (folder / "manifest.json").read_text("utf-8")
    assert text.count(old) >= 1
    (folder / "manifest.json").write_text(text.replace(old, new, 1), "utf-8")
    report = verify(folder)
    assert statuses(report) == {"manifest": FAILED}
    assert "manifest.json" in details(report)


def test_what_is_no_artifact_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "none", tmp_path / "file"):
        assert "is not an artifact: it has no manifest.json" in details(verify(place))


# From here on the manifest fits the files; what does not fit is what they hold.


def test_a_graph_with_other_operators_than_listed_is_found(folder: Path) -> None:
    operators = manifest.read(folder).operators
    fewer = replace(operators[0], operators={**operators[0].operators, "Slice": 1})
    rewrite(folder, operators=(fewer, *operators[1:]))
    assert "model.onnx has other operators than the manifest lists" in details(verify(folder))


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a\x12\xff\xff\xff\xff\x0f"])
def test_a_graph_that_cannot_be_parsed_is_found(folder: Path, content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    rewrite(folder)
    report = verify(folder)
    assert statuses(report)["graph"] == FAILED
    assert "model.onnx" in details(report)


@pytest.mark.parametrize(
    ("key", "value"),
    [("offset", "999999999"), ("offset", "-64"), ("length", "999999999"), ("location", "other.data"),
     ("location", "../artifact/model.onnx.data")],
)  # fmt: skip
def test_a_weight_outside_the_data_file_is_found(folder: Path, key: str, value: str) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in tensor.external_data if entry.key == key).value = value
    onnx.save(model, folder / "model.onnx")
    rewrite(folder)
    report = verify(folder)
    assert statuses(report)["graph"] == FAILED
    assert tensor.name in details(report) or "model.onnx is not a graph" in details(report)


def test_a_data_file_that_nothing_lists_is_found(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()
    rewrite(folder)
    report = verify(folder)
    assert statuses(report)["graph"] == FAILED
    assert "model.onnx.data" in details(report)


def test_a_runtime_that_is_too_old_or_a_provider_that_nobody_has_is_found(folder: Path) -> None:
    graph = manifest.read(folder).graph
    rewrite(folder, graph=replace(graph, minimum_onnxruntime="99.1"))
    assert "the artifact needs 99.1 or later" in details(verify(folder))
    rewrite(folder, graph=replace(graph, provider="tpu"))
    assert "the provider 'tpu' is unknown" in details(verify(folder))


def test_operators_of_an_unknown_domain_are_found(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, folder / "model.onnx")
    import onnx_ir as ir

    from qtool.artifact.describe import operator_sets

    rewrite(folder, operators=operator_sets(ir.load(folder / "model.onnx")))
    assert "com.example" in details(verify(folder))


def test_the_report_is_plain_data(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    document = json.loads(json.dumps(verify(folder).to_dict()))
    assert document["passed"] is False
    assert document["artifact"] == str(folder)
    assert {check["name"] for check in document["checks"]} == {"manifest", "file"}
