"""Tokenizers and chat templates: transformers and our runtime agree on the files that an artifact ships.

transformers 5 takes vocabulary and merges from tokenizer.json and sets up the rest for Qwen2 itself, so that
its ids are an opinion of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtool.checkpoint import open_checkpoint
from qtool_runtime.chat import ChatTemplate
from qtool_runtime.text import Tokenizer
from support.places import shared_folder
from support.tiny_gguf import write_tiny_gguf

pytest.importorskip("torch", reason="the comparison with transformers needs torch")
transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")

TEXTS = {
    "empty": "",
    "words": "Hello world, and the others.",
    "spaces": "  two  spaces\t\ttabs \n\n lines \r\n and a trailing space ",
    "numbers": "1234567890 3.14159 1,000,000",
    "contractions": "I'm sure they'll say it's what we've DON'T'D",
    "code": "def f(x: int) -> str:\n    return f'{x!r}'  # comment\n",
    "accents": "Ünïcödé naïve café",
    "decomposed": "e\u0301 is not \u00e9",
    "chinese": "你好，世界！这是一个测试。",  # noqa: RUF001
    "arabic": "مرحبا بالعالم",
    "emoji": "👩‍👩‍👧‍👦 🇩🇪 👍🏽",
    "controls": "\x00\x07\u200b\ufeff\u2028",
    "special": "<|im_start|>user\nhi<|im_end|><|endoftext|>",
    "almost special": "<|im_start <|im_end|",
    "added": "<tool_call>{}</tool_call>",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city — now",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "question": {"messages": [{"role": "user", "content": "Hello"}]},
    "system": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "  Hello <b>& 'you'</b>\n"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "Bye 👋"},
        ]
    },
    "tools": {"messages": [{"role": "user", "content": "Weather in Zürich?"}], "tools": TOOLS},
    "tool answer": {
        "messages": [
            {"role": "user", "content": "Weather in Zürich?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": '{"degrees": 21}'},
        ],
        "tools": TOOLS,
    },
}


def write_files(files: dict[str, bytes], folder: Path) -> Path:
    """Writes the tokenizer's files, and the configuration by which transformers knows the model."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}), "utf-8")
    return folder


def prompt_of(tokenizer: Any, conversation: dict[str, Any], **options: Any) -> str:
    """Returns the prompt that transformers renders."""
    prompt = tokenizer.apply_chat_template(
        conversation["messages"],
        tools=conversation.get("tools"),
        add_generation_prompt=True,
        tokenize=False,
        **options,
    )
    assert isinstance(prompt, str)
    return prompt


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.real)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer's files that were made from a GGUF file."""
    if request.param == "tiny":
        source = write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").path
    else:
        source = request.getfixturevalue("real_gguf")
    files = open_checkpoint(str(source)).tokenizer_files()
    return write_files(files, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """transformers' tokenizer of that folder."""
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_same_ids_and_the_same_text(folder: Path, theirs: Any, text: str) -> None:
    ours = Tokenizer.from_file(folder / "tokenizer.json")
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    for skip in (False, True):
        decoded = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special_tokens=skip) == decoded


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_same_prompt(folder: Path, theirs: Any, conversation: dict[str, Any]) -> None:
    assert ChatTemplate.from_folder(folder).render(**conversation) == prompt_of(theirs, conversation)


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_qwen3_prompts(conversation: dict[str, Any], thinking: bool | None, tmp_path: Path) -> None:
    shared = shared_folder()
    if shared is None:
        pytest.skip("there is no folder of official templates; set QTOOL_SHARED")
    source = (shared / "real-models" / "templates" / "qwen3.jinja").read_text("utf-8")
    tokenizer = write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = write_files(open_checkpoint(str(tokenizer.path)).tokenizer_files(), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    options = {} if thinking is None else {"enable_thinking": thinking}
    expected = prompt_of(theirs, conversation, chat_template=source, **options)
    assert ChatTemplate(source).render(**conversation, **options) == expected


def test_special_tokens(folder: Path, theirs: Any) -> None:
    assert theirs.eos_token == "<|im_end|>"
    assert theirs.pad_token == "<|endoftext|>"
    generation = json.loads((folder / "generation_config.json").read_text("utf-8"))
    ends = generation["eos_token_id"]
    assert theirs.eos_token_id in (ends if isinstance(ends, list) else [ends])


@pytest.fixture(scope="module")
def official() -> Any:
    """The official tokenizer of Qwen2.5, in transformers."""
    shared = shared_folder()
    if shared is None:
        pytest.skip("there is no folder of official tokenizers; set QTOOL_SHARED")
    return transformers.AutoTokenizer.from_pretrained(shared / "real-models" / "tokenizers" / "qwen2.5")


@pytest.fixture(scope="module")
def rebuilt(real_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tokenizer of a real GGUF file of Qwen2.5, in our runtime."""
    folder = tmp_path_factory.mktemp("rebuilt")
    write_files(open_checkpoint(str(real_gguf)).tokenizer_files(), folder)
    return Tokenizer.from_file(folder / "tokenizer.json")


@pytest.mark.real
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_ids_of_the_official_tokenizer(official: Any, rebuilt: Tokenizer, text: str) -> None:
    assert rebuilt.encode(text) == official.encode(text)
