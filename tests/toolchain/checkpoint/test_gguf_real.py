"""The publisher's files: what a user really opens."""
# ruff: noqa: RUF001  (texts in other scripts)

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, quants
from tokenizers import Tokenizer

from qtool.checkpoint import Checkpoint, open_checkpoint

pytestmark = pytest.mark.real

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "def quick_sort(items: list[int]) -> list[int]:\n    return sorted(items)  # 1234567890\n",
    "\tif (a != b) {\r\n\t\treturn a->b[10] ?: 0x1F;\r\n\t}\r\n\r\n\r\n",
    "你好，世界！今天是2024年5月17日，天气很好。",
    "日本語とひらがな、カタカナ、한국어 텍스트, русский язык, العربية, עברית, हिन्दी, ไทย",
    "emoji: 😀👩‍👩‍👧‍👦🏳️‍🌈 ½ ﬁ ① Å Å é é",
    "it's we'll I'VE they'd  trailing   spaces   \n\n  \n x",
    "3.14159e-10 1,000,000 ٣٤٥ Ⅷ 1st 2nd",
    "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    '<tool_call>\n{"name": "f"}\n</tool_call><|fim_prefix|>a<|fim_suffix|>b<|fim_middle|><|endoftext|>',
    "<|im_start|><|im_start|> <|im_end <|not_a_token|> <｜fullwidth｜>",
    "\u0000\u0007\u200b\u2028\ufeff\ufffd\U0010ffff",
    "a" * 300 + " " * 100 + "ab" * 100,
]


@pytest.fixture(scope="session")
def opened(real_gguf: Path) -> Checkpoint:
    return open_checkpoint(str(real_gguf))


@pytest.fixture(scope="session")
def files(opened: Checkpoint) -> dict[str, bytes]:
    return opened.tokenizer_files()


def test_the_configuration_is_the_official_one(opened: Checkpoint, shared: Path, real_gguf: Path) -> None:
    size = "0.5B" if "0.5b" in real_gguf.name else "1.5B"
    official = json.loads(
        (shared / f"real-models/configs/Qwen2.5-Coder-{size}-Instruct/config.json").read_text()
    )
    config = opened.config
    for field in dataclasses.asdict(config).keys() & official.keys():
        assert getattr(config, field) == official[field], field
    assert config.head_dim == official["hidden_size"] // official["num_attention_heads"]
    assert config.eos_token_ids == (151645, 151643)
    assert config.pad_token_id == 151643
    assert opened.name == real_gguf.stem
    assert (opened.kind, opened.id, opened.revision) == ("gguf", real_gguf.name, None)


def test_opening_for_a_plan_is_quick(real_gguf: Path) -> None:
    open_checkpoint(str(real_gguf))  # imports, and the file's first pages
    fastest = min(_seconds_to_open(real_gguf) for _ in range(3))
    assert fastest < 0.5


def _seconds_to_open(path: Path) -> float:
    start = time.process_time()
    open_checkpoint(str(path))
    return time.process_time() - start


@pytest.mark.slow
def test_rows_are_those_of_the_gguf_package(opened: Checkpoint, real_gguf: Path) -> None:
    """One tensor of each stored type, against the other reader and dequantization of many rows at once."""
    if "0.5b" not in real_gguf.name:
        pytest.skip("the gguf package takes 12 seconds to open one file; the 0.5B has all the types")
    reader = GGUFReader(real_gguf)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    pairs = {
        "model.embed_tokens.weight": "output.weight",  # the more precise copy serves both uses
        "model.norm.weight": "output_norm.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.layers.3.mlp.gate_proj.weight": "blk.3.ffn_gate.weight",
        "model.layers.11.mlp.down_proj.weight": "blk.11.ffn_down.weight",
        "model.layers.20.self_attn.q_proj.bias": "blk.20.attn_q.bias",
        "model.layers.7.self_attn.v_proj.weight": "blk.7.attn_v.weight",
    }
    seen = set()
    for name, gguf_name in pairs.items():
        tensor, weight = tensors[gguf_name], opened.weights[name]
        assert weight.stored_type == tensor.tensor_type.name
        assert weight.shape == tuple(int(size) for size in reversed(tensor.shape))
        start, stop = weight.shape[0] // 3, min(weight.shape[0], weight.shape[0] // 3 + 500)
        data = tensor.data[start:stop]
        np.testing.assert_array_equal(weight.read(start, stop), quants.dequantize(data, tensor.tensor_type))
        seen.add(weight.stored_type)
    assert len(seen) >= 3


def test_the_files_have_the_estimated_size(opened: Checkpoint, files: dict[str, bytes]) -> None:
    assert opened.tokenizer_bytes == pytest.approx(sum(map(len, files.values())), rel=0.01)


def test_ids_are_those_of_the_official_tokenizer(files: dict[str, bytes], shared: Path) -> None:
    ours = Tokenizer.from_buffer(files["tokenizer.json"])
    official = Tokenizer.from_file(str(shared / "real-models/tokenizers/qwen2.5/tokenizer.json"))
    texts = TEXTS + [
        path.read_text(encoding="utf-8")[start : start + 40_000]
        for path in sorted((shared / "corpora").glob("*.txt"))
        for start in (0, 100_000)
    ]
    for text in texts:
        ids = ours.encode(text).ids
        assert ids == official.encode(text).ids, text[:60]
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == official.decode(
                ids, skip_special_tokens=skip
            )
    assert ours.get_vocab() == official.get_vocab()


def test_a_decoded_text_is_the_text(files: dict[str, bytes], shared: Path) -> None:
    tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    corpus = (shared / "corpora" / "tinyshakespeare.txt").read_text()[:50_000]
    for text in [*TEXTS[:7], *TEXTS[8:13], corpus]:  # the one left out is changed by Unicode normalization
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_small_files_say_what_the_official_ones_say(
    files: dict[str, bytes], shared: Path, real_gguf: Path
) -> None:
    official = json.loads((shared / "real-models/tokenizers/qwen2.5/tokenizer_config.json").read_text())
    ours = json.loads(files["tokenizer_config.json"])
    for field in official.keys() - {"chat_template", "model_max_length"}:
        assert ours[field] == official[field], field
    assert ours["model_max_length"] == 32768  # what the model was trained for; the official file says 131072
    generation = json.loads(files["generation_config.json"])
    assert generation == {"bos_token_id": 151643, "eos_token_id": [151645, 151643], "pad_token_id": 151643}
    assert files["chat_template.jinja"].decode() == ours["chat_template"]
    if "0.5b" in real_gguf.name:
        template = (shared / "real-models/templates/qwen2.5.jinja").read_text()
        assert files["chat_template.jinja"].decode().strip() == template.strip()
