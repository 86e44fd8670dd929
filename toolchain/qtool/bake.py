"""Baking a system prompt into an artifact: the build reads it with the compiled graph, so devices need not.

What goes into the artifact are the text, and keys and values of the tokens with which every conversation that
has this system message starts. They depend on the kernels of the machine that builds, as any run does, by
rounding; everything else of an artifact does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from qtool.checkpoint import Checkpoint, QwenConfig
from qtool.checkpoint.files import SourceFile, shown
from qtool.errors import ContextLimitError, IncompatibleRuntimeError, SourceError
from qtool.plan import with_system_prompt
from qtool_runtime.chat import ChatTemplate
from qtool_runtime.compatibility import PROVIDERS, import_onnxruntime
from qtool_runtime.conversation import encode_opening
from qtool_runtime.engine import EngineOptions
from qtool_runtime.integrity import sha256_of
from qtool_runtime.kernels import OFF
from qtool_runtime.kv_file import Header, file_bytes
from qtool_runtime.manifest import BakedPrompt, FileEntry, Manifest
from qtool_runtime.onnx_engine import open_onnxruntime
from qtool_runtime.prefix_memory import PrefixMemory
from qtool_runtime.saved_prefix import MAXIMUM_TEXT_BYTES, PrefixFiles
from qtool_runtime.text import Tokenizer
from qtool_runtime.threads import check_threads
from qtool_targets import Target

TEXT_FILE, KV_FILE = "system_prompt.txt", "system_prompt.kv"


@dataclass(frozen=True)
class SystemPrompt:
    """A text, and the token ids that conversations with this system message start with."""

    text: str
    token_ids: tuple[int, ...]

    def bytes(self, config: QwenConfig, target: Target) -> int:
        """Returns what it adds to an artifact."""
        header = Header(
            model="0" * 64,
            tokens=len(self.token_ids),
            dtype=target.precision.kv_cache,
            tensors=2 * config.num_hidden_layers,
            heads=config.num_key_value_heads,
            head_dim=config.head_dim,
        )
        return file_bytes(header) + len(self.text.encode())


def prepare(path: str | Path, checkpoint: Checkpoint) -> SystemPrompt:
    """Reads a system prompt, and finds its tokens with the model's tokenizer and chat template.

    Args:
        path: a file of UTF-8 text; a line break at its end is left out.
        checkpoint: the model.

    Raises:
        SourceError: the file is missing, empty, too large or not UTF-8, or the source has no tokenizer.
        GenerationError: the model has no chat template, or that refuses a system message.
    """
    text = _read(Path(path))
    documents = checkpoint.tokenizer_files()
    if "tokenizer.json" not in documents:
        raise SourceError(
            f"{checkpoint.name} has no tokenizer.json, so the tokens of a system prompt cannot be counted",
            hint="Plan with the whole source, or without --bake-prompt.",
        )
    with TemporaryDirectory() as name:
        folder = Path(name)
        for document, content in documents.items():
            (folder / document).write_bytes(content)
        tokens = encode_opening(
            ChatTemplate.from_folder(folder),
            Tokenizer.from_file(folder / "tokenizer.json"),
            [{"role": "system", "content": text}],
            tools=None,
            enable_thinking=None,
        )
    return SystemPrompt(text, tuple(tokens.tolist()))


def check_bake(prompt: SystemPrompt, target: Target, context: int) -> None:
    """Refuses what cannot be baked here, before there is any work to lose.

    Raises:
        ContextLimitError: the prompt leaves no room for a conversation.
        MissingExtraError: onnxruntime is not installed.
        IncompatibleRuntimeError: the installed one lacks the target's provider.
    """
    if len(prompt.token_ids) >= context:
        raise ContextLimitError(
            f"target {target.name}: the system prompt has {len(prompt.token_ids)} tokens, the context is"
            f" {context}",
            hint="Shorten it, or pass a longer --context.",
        )
    needed = PROVIDERS[target.execution.provider].onnxruntime_name
    available = import_onnxruntime().get_available_providers()
    if needed not in available:
        raise IncompatibleRuntimeError(
            f"target {target.name}: a system prompt is baked by running the model, which takes {needed}; this"
            f" onnxruntime has {', '.join(available)}",
            hint="Build on a machine that has it, or without --bake-prompt.",
        )


def bake(folder: Path, document: Manifest, prompt: SystemPrompt, threads: int) -> Manifest:
    """Adds a system prompt to an artifact.

    Args:
        folder: the artifact, whole but for its manifest.
        document: what that will be.
        prompt: what to bake.
        threads: processor threads.

    Returns:
        The manifest with the prompt.

    Raises:
        IncompatibleRuntimeError: the installed onnxruntime cannot run the artifact.
    """
    # Without `load`: there is no manifest in the folder before everything is known.
    options = EngineOptions(None, check_threads(threads, None), document.context, kernels=OFF)
    engine = open_onnxruntime(folder, document, options)
    files = PrefixFiles.of(document, engine, PrefixMemory(0))
    files.save(folder / KV_FILE, np.array(prompt.token_ids, np.int64), (), engine.new_sessions(1))
    (folder / TEXT_FILE).write_bytes(prompt.text.encode())
    new = [folder / KV_FILE, folder / TEXT_FILE]
    entries = [FileEntry(path.name, path.stat().st_size, sha256_of(path)) for path in new]
    memory = with_system_prompt(document.memory, sum(entry.size for entry in entries))
    return replace(
        document,
        files=tuple(sorted([*document.files, *entries], key=lambda entry: entry.path)),
        baked_prompt=BakedPrompt(TEXT_FILE, KV_FILE, len(prompt.token_ids)),
        memory=memory,
    )


def _read(path: Path) -> str:
    where = shown(str(path), 200)
    if not path.is_file():
        raise SourceError(f"the system prompt {where} is not a file", hint="Give a file of UTF-8 text.")
    try:
        text = SourceFile.at(path).read_whole(MAXIMUM_TEXT_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"the system prompt {where} is not UTF-8: {error.reason} at byte {error.start}",
            hint="Save it as UTF-8.",
        ) from error
    text = text.replace("\r\n", "\n").removesuffix("\n")
    if not text:
        raise SourceError(f"the system prompt {where} is empty", hint="Give a file of UTF-8 text.")
    return text
