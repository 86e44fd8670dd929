"""Target files of the user's own: what is read, what is refused, and what an error says."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qtool_targets
from qtool_targets import Gates, TargetError, with_gates
from qtool_targets.schema import parse

BOARD = """
name = "my-board"
description = "A board"

[execution]
provider = "cpu"
minimum_onnxruntime = "1.23"

[weights]
bits = 4

[precision]
activations = "float32"
kv_cache = "float32"

[memory]
context = 1024
budget_mb = 900
"""


def board(**changes: Any) -> dict[str, Any]:
    """The document above; `weights__bits=8` replaces one key, and the value None removes it."""
    document = tomllib.loads(BOARD)
    for path, value in changes.items():
        table, _, key = path.rpartition("__")
        place = document[table] if table else document
        if value is None:
            del place[key]
        else:
            place[key] = value
    return document


def refusal(document: dict[str, Any]) -> str:
    with pytest.raises(TargetError) as caught:
        parse(document, "my.toml")
    assert caught.value.message.startswith("my.toml: ")
    return caught.value.message.removeprefix("my.toml: ")


def test_defaults_of_optional_keys() -> None:
    target = parse(board(), "my.toml")
    assert (target.weights.group_size, target.weights.symmetric) == (32, False)
    assert (target.weights.embedding_bits, target.weights.lm_head_bits) == (None, None)
    assert (target.tested_on, target.legacy) == ((), False)
    assert target.gates == Gates(None, None, None)


def test_gates_are_read_and_replaced_one_by_one() -> None:
    target = parse(board(gates={"max_kl": 0.1, "max_size_mb": 400}), "my.toml")
    assert target.gates == Gates(max_kl=0.1, max_size_mb=400)
    assert with_gates(target, Gates(max_kl=0.2)).gates == Gates(max_kl=0.2, max_size_mb=400)
    with pytest.raises(TargetError, match=r"gates\.min_top1 = 2 is not valid"):
        with_gates(target, Gates(min_top1=2))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"speed": 3}, "unknown key 'speed'; known: name, description"),
        ({"weights__grup_size": 32}, "[weights]: unknown key 'grup_size'; known: bits, group_size"),
        ({"memory__budget_mb": None}, "[memory]: the key 'budget_mb' is missing"),
        ({"name": None}, "the key 'name' is missing"),
        ({"weights": None}, "the table [weights] is missing"),
        ({"weights": 4}, "the table [weights] is missing"),
        ({"weights__bits": "4"}, "[weights]: bits = '4' is not of the type int"),
        ({"weights__bits": True}, "[weights]: bits = True is not of the type int"),
        ({"weights__bits": 4.0}, "[weights]: bits = 4.0 is not of the type int"),
        ({"weights__symmetric": 1}, "[weights]: symmetric = 1 is not of the type bool"),
        ({"weights__embedding_bits": False}, "[weights]: embedding_bits = False is not of the type int"),
        ({"legacy": "yes"}, "legacy = 'yes' is not of the type bool"),
        ({"tested_on": "this machine"}, "tested_on = 'this machine' is not of the type"),
        ({"tested_on": [1]}, "tested_on must be a list of strings, got [1]"),
        ({"execution__provider": "tpu"}, "execution.provider = 'tpu' is not one of cpu, cuda, directml"),
        ({"weights__bits": 5}, "weights.bits = 5 is not one of 4, 8, 16, 32"),
        ({"weights__lm_head_bits": 0}, "weights.lm_head_bits = 0 is not one of 4, 8, 16, 32"),
        ({"weights__group_size": 48}, "weights.group_size = 48 is not one of 16, 32, 64, 128"),
        ({"precision__activations": "int8"}, "precision.activations = 'int8' is not one of float32, float16"),
        ({"name": "My Board"}, "name = 'My Board' must be lower-case letters, digits"),
        ({"name": "../board"}, "name = '../board' must be lower-case letters, digits"),
        ({"name": ""}, "name = '' must be lower-case letters, digits"),
        ({"execution__minimum_onnxruntime": "new"}, "execution.minimum_onnxruntime = 'new' is not a version"),
        ({"memory__context": 0}, "memory.context = 0 must be positive"),
        ({"memory__budget_mb": -1}, "memory.budget_mb = -1 must be positive"),
        ({"precision__kv_cache": "float16"}, "precision.kv_cache = 'float16' differs from activations"),
        ({"weights__bits": 16}, "weights.bits = 16 does not go with activations = 'float32'"),
        ({"weights__embedding_bits": 16}, "weights.embedding_bits = 16 does not go with activations"),
        ({"gates": 3}, "gates = 3 is not a table"),
        ({"gates": {"kl": 0.1}}, "[gates]: unknown key 'kl'; known: max_kl, min_top1, max_size_mb"),
        ({"gates": {"max_kl": "low"}}, "[gates]: max_kl = 'low' is not of the type float | None"),
        ({"gates": {"max_kl": True}}, "[gates]: max_kl = True is not of the type float | None"),
        ({"gates": {"max_kl": 0}}, "gates.max_kl = 0 is not valid; it must be above 0"),
        ({"gates": {"max_kl": math.nan}}, "gates.max_kl = nan is not valid; it must be above 0"),
        ({"gates": {"max_size_mb": math.inf}}, "gates.max_size_mb = inf is not valid; it must be above 0"),
        ({"gates": {"min_top1": 80}}, "gates.min_top1 = 80 is not valid; it must be above 0 and at most 1"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(f"{k}={v!r}" for k, v in value.items()),
)  # fmt: skip
def test_a_refusal_names_key_value_and_valid_set(changes: dict[str, Any], expected: str) -> None:
    assert refusal(board(**changes)).startswith(expected)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
PATHS = [
    (table, key)
    for table, keys in {"": board(), **{k: v for k, v in board().items() if isinstance(v, dict)}}.items()
    for key in keys
]


@given(st.sampled_from(PATHS), json_values)
def test_any_value_anywhere_is_taken_or_refused_with_a_target_error(
    path: tuple[str, str], value: Any
) -> None:
    document = board()
    place = document[path[0]] if path[0] else document
    place[path[1]] = value
    try:
        parse(document, "my.toml")
    except TargetError as error:
        assert error.message


def test_loads_a_file_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.toml").write_text(BOARD)
    monkeypatch.chdir(tmp_path)
    by_text, by_path = qtool_targets.load("./my.toml"), qtool_targets.load(tmp_path / "my.toml")
    assert by_text == by_path == parse(board(), "my.toml")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        TargetError, match=r"unknown target 'x64-int5'; known: android-arm64-int4, .*x64-int8"
    ):
        qtool_targets.load("x64-int5")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "x64-int4/", "../x64-int4", "X64-INT4", "schema.py", "é\n"]
)
def test_odd_names_are_unknown_targets(name: str) -> None:
    with pytest.raises(TargetError, match="unknown target"):
        qtool_targets.load(name)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name = ", "is not valid TOML"),
        (b"name = 'a'\nname = 'b'", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"a = " + b"[" * 5000, "is not valid TOML"),
        (b"", "the table [execution] is missing"),
    ],
    ids=["cut off", "key twice", "not UTF-8", "too deep", "empty"],
)
def test_a_malformed_file_is_a_target_error(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(TargetError, match=r"bad\.toml") as caught:
        qtool_targets.load(tmp_path / "bad.toml")
    assert expected in caught.value.message


def test_a_missing_file_and_a_folder_are_target_errors(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"there is no target file .*none\.toml"):
        qtool_targets.load(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(TargetError, match=r"folder\.toml cannot be read: Is a directory"):
        qtool_targets.load(tmp_path / "folder.toml")
    with pytest.raises(TargetError, match="cannot be read: File name too long"):
        qtool_targets.load("a" * 300 + ".toml")
