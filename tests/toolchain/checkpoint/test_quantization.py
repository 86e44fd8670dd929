"""`quantization_config` of config.json: what the tools of GPTQ, AWQ and Olive write, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from qtool.checkpoint.packed_formats import AwqFormat, GptqFormat, OliveFormat
from qtool.checkpoint.quantization import Quantization, read_quantization
from qtool.errors import SourceError, UnsupportedModelError
from qtool.quantize.schemes import Scheme

# As the configurations of Qwen2.5-0.5B-Instruct-GPTQ-Int4 and -AWQ have them.
GPTQ: dict[str, Any] = {
    "batch_size": 1,
    "bits": 4,
    "block_name_to_quantize": None,
    "cache_block_outputs": True,
    "damp_percent": 0.01,
    "dataset": None,
    "desc_act": False,
    "exllama_config": {"version": 1},
    "group_size": 128,
    "max_input_length": None,
    "model_seqlen": None,
    "module_name_preceding_first_block": None,
    "modules_in_block_to_quantize": None,
    "pad_token_id": None,
    "quant_method": "gptq",
    "sym": True,
    "tokenizer": None,
    "true_sequential": True,
    "use_cuda_fp16": False,
    "use_exllama": True,
}
AWQ: dict[str, Any] = {
    "bits": 4,
    "group_size": 128,
    "modules_to_not_convert": None,
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}
OLIVE: dict[str, Any] = {
    "bits": 4,
    "embeds": False,
    "group_size": 32,
    "lm_head": False,
    "modules_to_not_convert": None,
    "overrides": {"model.layers.0.mlp.down_proj": {"bits": 8, "symmetric": None}},
    "quant_method": "olive",
    "symmetric": False,
    "tie_word_embeddings": False,
}
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
QUERY, HEAD, EMBEDDING = (
    "model.layers.1.self_attn.q_proj.weight",
    "lm_head.weight",
    "model.embed_tokens.weight",
)


def read(fields: dict[str, Any]) -> Quantization:
    found = read_quantization({"quantization_config": fields})
    assert found is not None
    return found


@pytest.mark.parametrize("document", [{}, {"quantization_config": None}])
def test_plain_floats(document: dict[str, Any]) -> None:
    assert read_quantization(document) is None


def test_gptq() -> None:
    found = read(GPTQ)
    assert (found.method, found.format) == ("gptq", GptqFormat(zero_point_offset=1))
    assert found.scheme_of(UP) == found.scheme_of(QUERY) == Scheme(4, 128, True, "source:gptq")
    for name in (HEAD, EMBEDDING, "model.norm.weight", QUERY.replace("weight", "bias")):
        assert found.scheme_of(name) is None


@pytest.mark.parametrize("field", ["checkpoint_format", "format"])
def test_the_second_version_of_gptq(field: str) -> None:
    found = read(GPTQ | {field: "gptq_v2", "sym": False, "bits": 8, "lm_head": True})
    assert found.format == GptqFormat(zero_point_offset=0)
    assert found.scheme_of(HEAD) == Scheme(8, 128, False, "source:gptq")


def test_gptq_of_some_modules() -> None:
    found = read(
        GPTQ | {"modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj", "mlp.gate_proj"]]}
    )
    assert found.scheme_of(UP) is not None and found.scheme_of(QUERY) is not None
    assert found.scheme_of(DOWN) is None


@pytest.mark.parametrize(
    "fields", [AWQ, {"w_bit": 4, "q_group_size": 128, "quant_method": "awq", "version": "GEMM"}]
)
def test_awq(fields: dict[str, Any]) -> None:
    found = read(fields)
    assert (found.method, found.format) == ("awq", AwqFormat())
    assert found.scheme_of(DOWN) == Scheme(4, 128, False, "source:awq")


def test_awq_of_some_modules() -> None:
    found = read(AWQ | {"modules_to_not_convert": ["layers.0.mlp"]})
    assert (found.scheme_of(UP), found.scheme_of(QUERY)) == (None, Scheme(4, 128, False, "source:awq"))


def test_olive_has_schemes_for_single_modules() -> None:
    found = read(OLIVE | {"lm_head": True, "embeds": True})
    assert (found.method, found.format) == ("olive", OliveFormat())
    assert found.scheme_of(DOWN) == Scheme(8, 32, False, "source:olive")
    for name in (UP, HEAD, EMBEDDING):
        assert found.scheme_of(name) == Scheme(4, 32, False, "source:olive")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"quant_method": "fp8"}, "quant_method is 'fp8'"),
        ({"quant_method": None}, "quant_method is None"),
        (GPTQ | {"bits": 3}, "bits is 3"),
        (GPTQ | {"group_size": -1}, "group_size is -1"),
        (GPTQ | {"group_size": 1024}, "group_size is 1024"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        (GPTQ | {"is_marlin_format": True}, "checkpoint_format is 'marlin'"),
        (GPTQ | {"dynamic": {"-:lm_head": {}}}, "dynamic is"),
        (GPTQ | {"pack_dtype": "int16"}, "pack_dtype is 'int16'"),
        (AWQ | {"version": "gemv"}, "version is 'gemv'"),
        (AWQ | {"zero_point": False}, "zero_point is False"),
        (AWQ | {"bits": 8}, "bits is 8"),
        (OLIVE | {"bits": 2}, "bits is 2"),
        (OLIVE | {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        (OLIVE | {"overrides": {UP: {"group_size": -1}}}, "group_size is -1"),
    ],
)
def test_what_cannot_be_taken_over_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read(fields)
    assert f"quantization_config.{named}" in caught.value.message
    assert "original model" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (7, "quantization_config is 7"),
        (GPTQ | {"bits": "4"}, "bits is '4'"),
        (GPTQ | {"bits": True}, "bits is True"),
        ({"quant_method": "gptq", "bits": 4}, "group_size is missing"),
        (GPTQ | {"sym": "yes"}, "sym is 'yes'"),
        (GPTQ | {"checkpoint_format": 2}, "checkpoint_format is 2"),
        (GPTQ | {"modules_in_block_to_quantize": [[1]]}, "modules_in_block_to_quantize is"),
        (AWQ | {"modules_to_not_convert": {"a": 1}}, "modules_to_not_convert is"),
        (OLIVE | {"symmetric": None}, "symmetric is missing"),
        (OLIVE | {"overrides": [1]}, "overrides is"),
        (OLIVE | {"overrides": {"a": 1}}, "overrides is"),
    ],
)
def test_damaged_fields_are_named(fields: Any, named: str) -> None:
    with pytest.raises(SourceError) as caught:
        read_quantization({"quantization_config": fields})
    assert named in caught.value.message
