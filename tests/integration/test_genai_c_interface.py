"""Artifacts through the C interface of onnxruntime-genai, which its C#, Java, C++ and Swift packages call."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import qtool
import qtool_runtime

Call = Callable[..., None]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    """The library that the Python package brings."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    genai = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai (the extra `genai`)")
    path = Path(genai.__file__).with_name("libonnxruntime-genai.so")
    if not path.is_file():
        pytest.skip("this onnxruntime-genai has its C interface elsewhere")
    found = ctypes.CDLL(str(path))
    found.OgaResultGetError.restype = ctypes.c_char_p
    for name in ("OgaGenerator_GetSequenceCount", "OgaSequencesGetSequenceCount"):
        getattr(found, name).restype = ctypes.c_size_t
    for name in ("OgaGenerator_GetSequenceData", "OgaSequencesGetSequenceData"):
        getattr(found, name).restype = ctypes.POINTER(ctypes.c_int32)
    return found


@pytest.fixture(scope="module")
def call(library: ctypes.CDLL) -> Call:
    """`call("OgaCreateModel", path, out)`: raises what went wrong."""

    def checked(name: str, *arguments: object) -> None:
        function = getattr(library, name)
        function.restype = ctypes.c_void_p
        if result := function(*arguments):
            raise RuntimeError(library.OgaResultGetError(ctypes.c_void_p(result)).decode())

    return checked


def test_the_calls_of_the_examples_in_the_readme_give_our_answer(
    library: ctypes.CDLL, call: Call, tmp_path: Path
) -> None:
    folder = qtool.build(target="arm64-int4", output=tmp_path / "nano").path
    messages = [{"role": "user", "content": "Turn on the kitchen light"}]
    with qtool_runtime.load(folder, threads=1) as model:
        text = model.chat_template.render(messages)
        stream = model.generate(text, max_tokens=40)
        expected_text = stream.read()
        expected = [*model.tokenizer.encode(text), *stream.token_ids]

    def made(function: str, *arguments: object) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        call(function, *arguments, ctypes.byref(handle))
        return handle

    loaded = made("OgaCreateModel", str(folder).encode())
    tokenizer = made("OgaCreateTokenizer", loaded)
    decoder = made("OgaCreateTokenizerStream", tokenizer)
    prompt = ctypes.c_char_p()
    encoded = json.dumps(messages).encode()
    template = ("OgaTokenizerApplyChatTemplate", tokenizer, None, encoded, None, True)
    call(*template, ctypes.byref(prompt))
    assert prompt.value == text.encode()
    tokens = made("OgaCreateSequences")
    call("OgaTokenizerEncode", tokenizer, prompt, tokens)
    options = made("OgaCreateGeneratorParams", loaded)
    length = ctypes.c_double(len(expected))
    call("OgaGeneratorParamsSetSearchNumber", options, b"max_length", length)
    generator = made("OgaCreateGenerator", loaded, options)
    call("OgaGenerator_AppendTokenSequences", generator, tokens)
    pieces = []
    while not library.OgaGenerator_IsDone(generator):
        call("OgaGenerator_GenerateNextToken", generator)
        count = library.OgaGenerator_GetSequenceCount(generator, ctypes.c_size_t(0))
        found = library.OgaGenerator_GetSequenceData(generator, ctypes.c_size_t(0))[:count]
        piece = ctypes.c_char_p()
        call("OgaTokenizerStreamDecode", decoder, ctypes.c_int32(found[-1]), ctypes.byref(piece))
        pieces.append(piece.value or b"")
    assert found == expected
    assert b"".join(pieces).decode() == expected_text
    for kind, handle in (
        ("Generator", generator),
        ("GeneratorParams", options),
        ("Sequences", tokens),
        ("TokenizerStream", decoder),
        ("Tokenizer", tokenizer),
        ("Model", loaded),
    ):
        destroy = getattr(library, f"OgaDestroy{kind}")
        destroy.restype = None
        destroy(handle)


def test_a_folder_without_a_model_is_an_error_not_a_crash(call: Call, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"genai_config\.json"):
        call("OgaCreateModel", str(tmp_path).encode(), ctypes.byref(ctypes.c_void_p()))
