"""GGUF files: tensors under Hugging Face names, tied or not, and configurations that are refused."""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants

from qtool.checkpoint import open_checkpoint
from qtool.checkpoint.config_json import config_from_json
from qtool.checkpoint.files import SourceFile
from qtool.checkpoint.gguf_file import huggingface_name
from qtool.checkpoint.gguf_header import read_header
from qtool.checkpoint.gguf_tensors import gguf_weight, same_tensor
from qtool.checkpoint.layout import EMBEDDING, LM_HEAD, weight_shapes
from qtool.checkpoint.weight import require_finite
from qtool.errors import QtoolError, SourceError, UnsupportedModelError
from support.tiny import random_tensors, tiny_config
from support.tiny_gguf import ARCHITECTURES, Edit, Type, random_blocks, write_tiny_gguf

DEQUANTIZABLE = [Type.F32, Type.F16, *sorted(quants._type_traits)]
"""Every type that the installed gguf package can dequantize."""


@pytest.mark.parametrize("weight_type", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q5_0, Type.Q4_0])
@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("qwen2", False), ("qwen3", True)])
def test_every_value_is_the_written_one(
    tmp_path: Path, architecture: str, tied: bool, weight_type: Type
) -> None:
    written = write_tiny_gguf(
        tmp_path / "a.gguf", architecture=architecture, tied=tied, weight_type=weight_type
    )
    opened = open_checkpoint(str(written.path))
    assert list(opened.weights) == list(weight_shapes(opened.config))
    for name, weight in opened.weights.items():
        assert weight.name == name
        assert weight.read_all().dtype == np.float32
        np.testing.assert_array_equal(weight.read_all(), written.values(name))
        np.testing.assert_array_equal(weight.read(3, 8), written.values(name)[3:8])
    assert opened.weights["model.layers.1.mlp.up_proj.weight"].stored_type == weight_type.name
    assert opened.weights["model.norm.weight"].stored_type == "F32"


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_configuration_is_that_of_the_same_model_in_a_folder(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    written = write_tiny_gguf(tmp_path / "a.gguf", architecture=architecture, tied=tied)
    generation = {"eos_token_id": [302, 300], "pad_token_id": 300}
    assert open_checkpoint(str(written.path)).config == config_from_json(written.config, generation)


def test_what_a_checkpoint_says_about_itself(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny-instruct-q8_0.gguf").path
    opened = open_checkpoint(str(path))
    assert (opened.name, opened.kind, opened.id, opened.revision) == (
        "tiny-instruct-q8_0",
        "gguf",
        "tiny-instruct-q8_0.gguf",
        None,
    )
    assert opened.sha256() == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    assert open_checkpoint(str(path.rename(tmp_path / "ggml-model-q8_0.gguf"))).name == "A-Tiny-Model"


@pytest.mark.parametrize("stored_type", DEQUANTIZABLE, ids=lambda kind: kind.name)
def test_rows_of_every_type_are_those_of_the_gguf_package(tmp_path: Path, stored_type: Type) -> None:
    """Random bytes, so that every bit of a block matters; in parts that do and do not fill a chunk."""
    rows, columns = 700, 512  # more than one chunk
    block, block_bytes = gguf.GGML_QUANT_SIZES[stored_type]
    blocks = random_blocks(stored_type, rows * columns // block).reshape(-1, block_bytes)
    with np.errstate(all="ignore"):  # random scales may be infinite or not a number: no such blocks here
        finite = np.isfinite(quants.dequantize(blocks, stored_type).reshape(len(blocks), -1)).all(axis=1)
    assert finite.mean() > 0.5
    blocks[~finite] = 0
    raw = blocks.reshape(rows, -1)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2")
    writer.add_tensor("x", raw, raw_dtype=stored_type)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    file = SourceFile.at(tmp_path / "a.gguf")
    weight = gguf_weight(file, read_header(file).tensors["x"], "x")
    assert weight.shape == (rows, columns)
    expected = quants.dequantize(raw, stored_type)
    for start, stop in [(0, rows), (0, 1), (511, 514), (699, 700), (5, 5), (100, 650)]:
        np.testing.assert_array_equal(weight.read(start, stop), expected[start:stop])
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: weight.read(start, start + 70), range(0, rows, 70)))
    np.testing.assert_array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    written = write_tiny_gguf(tmp_path / "a.gguf", weight_type=Type.F32)
    content = bytearray(written.path.read_bytes())
    content[-4:] = np.float32(value).tobytes()
    written.path.write_bytes(content)
    opened = open_checkpoint(str(written.path))
    last = next(name for name, gguf_name in written.names.items() if gguf_name == list(written.tensors)[-1])
    with pytest.raises(SourceError, match="infinite or not a number"):
        opened.weights[last].read_all()
    enormous = np.full((2, 2), 3e38, np.float32)  # their sum is infinite, but they are not
    assert require_finite(enormous, "x") is enormous


def test_types_without_dequantization_are_refused_by_name(tmp_path: Path) -> None:
    others = [kind for kind in Type if kind not in DEQUANTIZABLE]
    assert Type.I32 in others
    for kind in others:
        block = gguf.GGML_QUANT_SIZES[kind][0]
        tensor = read_header_of_one_tensor(tmp_path / kind.name, kind, block)
        with pytest.raises(
            UnsupportedModelError, match=f"'x' is stored as {kind.name}, .*supported: F32, F16"
        ):
            gguf_weight(SourceFile.at(tmp_path / kind.name), tensor, "x")


def read_header_of_one_tensor(path: Path, kind: Type, elements: int) -> object:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tensor("x", random_blocks(kind, elements // gguf.GGML_QUANT_SIZES[kind][0]), raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return read_header(SourceFile.at(path)).tensors["x"]


def test_names_are_those_of_the_gguf_package() -> None:
    for architecture, kind in ARCHITECTURES.items():
        names = gguf.get_tensor_name_map(kind, 12)
        config = config_from_json(tiny_config(architecture, tied=False) | {"num_hidden_layers": 12})
        for name in weight_shapes(config):
            base, _, suffix = name.rpartition(".")
            assert huggingface_name(f"{names.get_name(base)}.{suffix}") == name
    for unknown in ("blk.0.attn_q_norm2.weight", "blk.00.attn_q.weight", "blk.x.attn_q.weight", "weight", ""):
        assert huggingface_name(unknown) == unknown


@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "blk.2.attn_norm.weight", "blk.0.attn_output.bias", "blk.0.attn_q.scale"]
)
def test_tensors_that_would_be_left_out_are_refused(tmp_path: Path, name: str) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor(name, np.ones(64, np.float32))

    path = write_tiny_gguf(tmp_path / "a.gguf", edit=edit).path
    with pytest.raises(UnsupportedModelError, match="does not use"):
        open_checkpoint(str(path))


# Tied or not: the two rows of types are those of the publisher's 0.5B and 1.5B files.


@pytest.mark.parametrize(
    ("embedding_type", "output_type", "better"),
    [
        (Type.Q5_0, Type.Q8_0, "output"),
        (Type.Q4_0, Type.F16, "output"),
        (Type.Q8_0, Type.Q8_0, "output"),
        (Type.F16, Type.Q8_0, "embedding"),
        (Type.BF16, Type.F16, "output"),
    ],
)
def test_one_matrix_written_twice_is_tied_and_the_better_copy_serves_both_uses(
    tmp_path: Path, embedding_type: Type, output_type: Type, better: str
) -> None:
    embedding = random_tensors(tiny_config(), 0)[EMBEDDING]
    types = {EMBEDDING: embedding_type, LM_HEAD: output_type}
    written = write_tiny_gguf(tmp_path / "a.gguf", output=embedding, types=types)
    opened = open_checkpoint(str(written.path))
    assert opened.config.tie_word_embeddings
    assert LM_HEAD not in opened.weights
    kept = LM_HEAD if better == "output" else EMBEDDING
    assert opened.weights[EMBEDDING].stored_type == types[kept].name
    assert opened.weights[EMBEDDING].name == EMBEDDING
    np.testing.assert_array_equal(opened.weights[EMBEDDING].read_all(), written.values(kept))


@pytest.mark.parametrize("difference", [1.0, 0.5, 0.2])
def test_two_matrices_are_not_tied(tmp_path: Path, difference: float) -> None:
    """Not even a head that was trained from the embedding, where the difference is more than rounding."""
    embedding = random_tensors(tiny_config(), 0)[EMBEDDING]
    head = embedding + difference * random_tensors(tiny_config(), 1)[EMBEDDING]
    written = write_tiny_gguf(
        tmp_path / "a.gguf", output=head, types={EMBEDDING: Type.Q5_0, LM_HEAD: Type.Q8_0}
    )
    opened = open_checkpoint(str(written.path))
    assert not opened.config.tie_word_embeddings
    for name in (EMBEDDING, LM_HEAD):
        np.testing.assert_array_equal(opened.weights[name].read_all(), written.values(name))


def test_the_coarsest_types_do_not_make_unrelated_matrices_equal(tmp_path: Path) -> None:
    columns = 256
    random = np.random.default_rng(0)
    one, other = (random.standard_normal((300, columns), np.float32) for _ in range(2))
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2")
    writer.add_tensor("one", quants.quantize(one, Type.TQ2_0), raw_dtype=Type.TQ2_0)
    writer.add_tensor("other", quants.quantize(other, Type.TQ2_0), raw_dtype=Type.TQ2_0)
    writer.add_tensor("wider", np.zeros((300, 512), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    file = SourceFile.at(tmp_path / "a.gguf")
    tensors = read_header(file).tensors
    assert same_tensor(file, tensors["one"], tensors["one"])
    assert not same_tensor(file, tensors["one"], tensors["other"])
    assert not same_tensor(file, tensors["one"], tensors["wider"])


def set_value(key: str, value: object, kind: gguf.GGUFValueType | None = None) -> Edit:
    def edit(writer: gguf.GGUFWriter) -> None:
        data = writer.kv_data[0]
        if value is None:
            del data[key]
        elif isinstance(value, str):
            data[key] = gguf.GGUFValue(value, gguf.GGUFValueType.STRING)
        else:
            data[key] = gguf.GGUFValue(value, kind or gguf.GGUFValueType.get_type(value))

    return edit


UNSUPPORTED = [
    ("general.architecture", "llama", "another architecture"),
    ("general.architecture", "qwen3moe", "mixture of experts"),
    ("general.architecture", "qwen2vl", "vision-language"),
    ("general.architecture", "qwen3next", "hybrid"),
    ("general.architecture", "clip", "clip"),
    ("general.type", "adapter", "adapter"),
    ("qwen2.rope.scaling.type", "yarn", "stretched"),
    ("qwen2.attention.sliding_window", 100, "full attention"),
    ("qwen2.attention.value_length", 32, "length of a key"),
    ("qwen2.rope.dimension_count", 8, "length of a key"),
    ("tokenizer.ggml.model", "llama", "byte-level BPE"),
    ("tokenizer.ggml.pre", "llama-bpe", "other tokens than in training"),
    ("tokenizer.ggml.pre", None, "'missing'"),
    ("tokenizer.ggml.add_bos_token", True, "false"),
]


@pytest.mark.parametrize(("key", "value", "message"), UNSUPPORTED)
def test_what_is_not_implemented_is_refused_by_name(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", edit=set_value(key, value)).path
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        open_checkpoint(str(path))
    assert key in caught.value.message
    assert caught.value.hint


MALFORMED = [
    ("general.architecture", None, "is missing"),
    ("general.architecture", 5, "must be a string"),
    ("qwen2.block_count", None, "is missing"),
    ("qwen2.block_count", 0, "from 1"),
    ("qwen2.block_count", True, "from 1"),
    ("qwen2.block_count", "2", "from 1"),
    ("qwen2.embedding_length", 63, "not a multiple"),
    ("qwen2.attention.head_count_kv", 3, "not a multiple"),
    ("qwen2.attention.head_count_kv", [2, 2], "an array of 2"),
    ("qwen2.rope.freq_base", None, "is missing"),
    ("qwen2.rope.freq_base", math.nan, "positive number"),
    ("qwen2.attention.layer_norm_rms_epsilon", -1.0, "positive number"),
    ("split.count", 3, "parts of a split"),
    ("tokenizer.ggml.eos_token_id", 320, "0 to 319"),
    ("tokenizer.ggml.tokens", "abc", "must be an array"),
    ("tokenizer.ggml.tokens", ["a", "b"], "2 entries"),
    ("tokenizer.ggml.merges", None, "is missing"),
    ("tokenizer.ggml.token_type", None, "is missing"),
    ("tokenizer.ggml.token_type", ["a"] * 320, "array of INT32"),
    ("tokenizer.ggml.token_type", [7] * 320, "1, 3, 4 or 5"),
    ("tokenizer.ggml.tokens", [1] * 320, "array of STRING"),
    ("tokenizer.chat_template", 5, "must be a string"),
    ("general.sampling.temp", "hot", "positive number"),
]


@pytest.mark.parametrize(("key", "value", "message"), MALFORMED)
def test_malformed_metadata_are_refused_by_name(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", edit=set_value(key, value)).path
    with pytest.raises(QtoolError, match=message) as caught:
        open_checkpoint(str(path))
    assert key in caught.value.message or key == "split.count"


def test_a_file_without_an_embedding_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2")
    with pytest.raises(SourceError, match="token_embd"):
        from support.tiny_gguf import add_config, add_tokenizer

        add_config(writer, tiny_config())
        add_tokenizer(writer, tiny_config())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        open_checkpoint(str(tmp_path / "a.gguf"))
