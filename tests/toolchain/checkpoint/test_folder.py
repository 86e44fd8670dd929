"""Hugging Face folders: single file and shards, tokenizer files, and folders that are something else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from qtool.checkpoint import open_checkpoint
from qtool.checkpoint.layout import weight_shapes
from qtool.errors import QtoolError, SourceError, UnsupportedModelError
from support.tiny import CHAT_TEMPLATE, TinyCheckpoint, token_ids, write_tiny_checkpoint

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def tiny(tmp_path: Path) -> TinyCheckpoint:
    return write_tiny_checkpoint(tmp_path / "Tiny-Qwen2")


@pytest.fixture
def sharded(tmp_path: Path) -> TinyCheckpoint:
    return write_tiny_checkpoint(tmp_path / "sharded", sharded=True)


def edit(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("qwen2", False), ("qwen3", True)])
def test_every_value_is_the_written_one(
    tmp_path: Path, architecture: str, tied: bool, dtype: str, sharded: bool
) -> None:
    tiny = write_tiny_checkpoint(
        tmp_path / "m", architecture=architecture, tied=tied, dtype=dtype, sharded=sharded
    )
    opened = open_checkpoint(str(tiny.folder))
    assert list(opened.weights) == list(weight_shapes(opened.config))
    assert opened.weights.keys() == tiny.tensors.keys()
    for name, weight in opened.weights.items():
        assert (weight.name, weight.stored_type) == (name, dtype)
        np.testing.assert_array_equal(weight.read_all(), tiny.tensors[name])
        np.testing.assert_array_equal(weight.read(3, 7), tiny.tensors[name][3:7])


def test_what_a_checkpoint_says_about_itself(tiny: TinyCheckpoint) -> None:
    opened = open_checkpoint(str(tiny.folder))
    assert (opened.name, opened.kind, opened.id, opened.revision) == (
        "Tiny-Qwen2",
        "safetensors",
        "Tiny-Qwen2",
        None,
    )
    ids = token_ids()
    assert opened.config.eos_token_ids == (ids["<|im_end|>"], ids["<|endoftext|>"])
    content = (tiny.folder / "model.safetensors").read_bytes()
    assert opened.sha256() == {"model.safetensors": hashlib.sha256(content).hexdigest()}


def test_the_hashes_of_shards(sharded: TinyCheckpoint) -> None:
    expected = {name: hashlib.sha256((sharded.folder / name).read_bytes()).hexdigest() for name in SHARDS}
    assert open_checkpoint(str(sharded.folder)).sha256() == expected


def test_tokenizer_files_are_copied_and_counted(tiny: TinyCheckpoint) -> None:
    opened = open_checkpoint(str(tiny.folder))
    files = opened.tokenizer_files()
    assert list(files) == [
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in list(files)[1:]:
        assert files[name] == (tiny.folder / name).read_bytes()
    assert files["chat_template.jinja"].decode() == CHAT_TEMPLATE
    assert opened.tokenizer_bytes == sum(map(len, files.values()))
    tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    assert tokenizer.encode("<|im_start|>Hello world").ids == [301, 296, 299]


def test_the_template_comes_from_the_first_place_that_has_one(tiny: TinyCheckpoint) -> None:
    def template() -> str | None:
        opened = open_checkpoint(str(tiny.folder))
        files = opened.tokenizer_files()
        assert opened.tokenizer_bytes == sum(map(len, files.values()))
        content = files.get("chat_template.jinja")
        return content.decode() if content else None

    config = tiny.folder / "tokenizer_config.json"
    edit(config, {"chat_template": None})
    assert template() is None
    edit(
        config,
        {"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]},
    )
    assert template() == "D"
    (tiny.folder / "chat_template.json").write_text('{"chat_template": "J"}')
    assert template() == "J"
    (tiny.folder / "chat_template.jinja").write_text("{{ 'é' }}", encoding="utf-8")
    assert template() == "{{ 'é' }}"
    config.unlink()
    assert template() == "{{ 'é' }}"


@pytest.mark.parametrize(
    "template", [5, {"a": "b"}, [{"name": "tool_use", "template": "T"}], ["x"], "\ud800"]
)
def test_an_unusable_template_is_refused(tiny: TinyCheckpoint, template: Any) -> None:
    edit(tiny.folder / "tokenizer_config.json", {"chat_template": template})
    with pytest.raises(SourceError, match="chat_template"):
        open_checkpoint(str(tiny.folder)).tokenizer_files()


def test_a_missing_generation_config_is_made_from_the_configuration(tiny: TinyCheckpoint) -> None:
    (tiny.folder / "generation_config.json").unlink()
    opened = open_checkpoint(str(tiny.folder))
    ids = token_ids()
    assert opened.config.eos_token_ids == (ids["<|im_end|>"],)
    assert json.loads(opened.tokenizer_files()["generation_config.json"]) == {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }


def test_the_tokenizer_must_fit_the_embedding(tiny: TinyCheckpoint) -> None:
    path = tiny.folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["zzz"] = 320
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(SourceError, match=r"'zzz' the id 320; the embedding has only 320 rows"):
        open_checkpoint(str(tiny.folder)).tokenizer_files()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xff", b"[" * 100_000, b'{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_refused(tiny: TinyCheckpoint, content: bytes) -> None:
    (tiny.folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"tokenizer\.json' is not usable"):
        open_checkpoint(str(tiny.folder)).tokenizer_files()


def test_a_missing_tokenizer_is_noticed_before_anything_is_built(tiny: TinyCheckpoint) -> None:
    (tiny.folder / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"has no tokenizer\.json"):
        open_checkpoint(str(tiny.folder))
    (tiny.folder / "vocab.json").touch()
    with pytest.raises(SourceError) as caught:
        open_checkpoint(str(tiny.folder))
    assert "save_pretrained" in caught.value.hint


def test_enormous_small_files_are_refused(tiny: TinyCheckpoint) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        path = tiny.folder / name
        content = path.read_bytes()
        with path.open("ab") as stream:
            stream.truncate(200 * 2**20)  # sparse: takes no space
        with pytest.raises(SourceError, match=r"at most \d+ are accepted"):
            open_checkpoint(str(tiny.folder))
        path.write_bytes(content)


def test_one_file_goes_before_an_index(sharded: TinyCheckpoint, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    (other.folder / "model.safetensors").rename(sharded.folder / "model.safetensors")
    opened = open_checkpoint(str(sharded.folder))
    np.testing.assert_array_equal(
        opened.weights["model.norm.weight"].read_all(), other.tensors["model.norm.weight"]
    )


def test_a_missing_shard_is_named(sharded: TinyCheckpoint) -> None:
    (sharded.folder / SHARDS[1]).unlink()
    with pytest.raises(SourceError, match=f"1 are not there: '{SHARDS[1]}'"):
        open_checkpoint(str(sharded.folder))


@pytest.mark.parametrize(
    "file",
    [
        "../other/model.safetensors",
        "/etc/model.safetensors",
        "a\\b.safetensors",
        "x.bin",
        5,
        "",
        "..",
        "a\0.safetensors",
    ],
)
def test_an_index_cannot_lead_out_of_the_folder(sharded: TinyCheckpoint, file: Any) -> None:
    path = sharded.folder / INDEX
    weight_map = json.loads(path.read_text())["weight_map"]
    edit(path, {"weight_map": weight_map | {"model.norm.weight": file}})
    with pytest.raises(SourceError, match=r"'model\.norm\.weight' in .* same folder"):
        open_checkpoint(str(sharded.folder))


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_map_is_refused(sharded: TinyCheckpoint, weight_map: Any) -> None:
    edit(sharded.folder / INDEX, {"weight_map": weight_map})
    with pytest.raises(SourceError, match="must have a weight_map"):
        open_checkpoint(str(sharded.folder))


def test_an_index_that_is_wrong_about_a_tensor_is_refused(sharded: TinyCheckpoint) -> None:
    path = sharded.folder / INDEX
    weight_map = json.loads(path.read_text())["weight_map"]
    wrong = next(file for file in SHARDS if file != weight_map["model.norm.weight"])
    edit(path, {"weight_map": weight_map | {"model.norm.weight": wrong}})
    with pytest.raises(SourceError, match=r"'model\.norm\.weight' in"):
        open_checkpoint(str(sharded.folder))


def test_a_tensor_in_two_shards_is_refused(sharded: TinyCheckpoint) -> None:
    (sharded.folder / SHARDS[1]).write_bytes((sharded.folder / SHARDS[0]).read_bytes())
    with pytest.raises(SourceError, match="another file has too"):
        open_checkpoint(str(sharded.folder))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    tiny = write_tiny_checkpoint(tmp_path / "m")
    edit(tiny.folder / "config.json", {"intermediate_size": 96})
    with pytest.raises(SourceError, match=r"not \(96, 64\)"):
        open_checkpoint(str(tiny.folder))
    edit(tiny.folder / "config.json", {"intermediate_size": 128, "num_hidden_layers": 3})
    with pytest.raises(SourceError, match=r"lacks 12 of"):
        open_checkpoint(str(tiny.folder))
    edit(tiny.folder / "config.json", {"num_hidden_layers": 1})
    with pytest.raises(UnsupportedModelError, match=r"layers\.1"):
        open_checkpoint(str(tiny.folder))


def test_weights_of_integer_types_are_refused_by_name(tiny: TinyCheckpoint) -> None:
    path = tiny.folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"I16" '))
    with pytest.raises(UnsupportedModelError, match=r"' is I16.*supported: BF16, F16, F32"):
        open_checkpoint(str(tiny.folder))


FOLDERS: list[tuple[list[str], str, str]] = [
    ([], "is empty", "download"),
    (["model.safetensors"], r"has no config\.json", "tokenizer.json"),
    (["a-q4_0.gguf", "README.md"], r"has no config\.json", "a-q4_0.gguf"),
    (["pytorch_model.bin"], "can run any program", "safetensors"),
    (["adapter_config.json", "adapter_model.safetensors"], "adapter", "merge"),
]


@pytest.mark.parametrize(("names", "message", "hint"), FOLDERS)
def test_other_folders_are_refused_with_the_next_step(
    tmp_path: Path, names: list[str], message: str, hint: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(SourceError, match=message) as caught:
        open_checkpoint(str(tmp_path))
    assert hint in caught.value.hint


WEIGHTS: list[tuple[list[str], str]] = [
    (["pytorch_model.bin"], "only pickled weights .*can run any program"),
    (["pytorch_model-00001-of-00002.bin", "training_args.bin"], "only pickled weights"),
    (["consolidated.00.pth"], "only pickled weights"),
    (["adapter_model.safetensors"], "has adapter_model.safetensors, but neither"),
    ([], "has no weights"),
]


@pytest.mark.parametrize(("names", "message"), WEIGHTS)
def test_folders_without_readable_weights_are_refused(
    tiny: TinyCheckpoint, names: list[str], message: str
) -> None:
    (tiny.folder / "model.safetensors").unlink()
    for name in names:
        (tiny.folder / name).touch()
    with pytest.raises(SourceError, match=message) as caught:
        open_checkpoint(str(tiny.folder))
    assert caught.value.hint


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"a":' * 100_000,
        b'{"a":1,"a":2}',
        "{}".encode("utf-16"),
    ],
)
def test_damaged_json_is_refused(tiny: TinyCheckpoint, name: str, content: bytes) -> None:
    (tiny.folder / name).write_bytes(content)
    with pytest.raises(SourceError, match=name):
        open_checkpoint(str(tiny.folder))


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"]
)
def test_folders_and_loops_in_place_of_files_are_refused(tiny: TinyCheckpoint, name: str) -> None:
    path = tiny.folder / name
    path.unlink()
    path.mkdir()
    with pytest.raises(QtoolError, match="is a folder"):
        open_checkpoint(str(tiny.folder))
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(QtoolError, match="cannot read"):
        open_checkpoint(str(tiny.folder))
