"""Opening an artifact: what is checked, in which order, before the first prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtool_runtime.checks import check_context, check_on_answer, check_prefix_memory
from qtool_runtime.engine import EngineOptions
from qtool_runtime.engines import check_engine, open_engine
from qtool_runtime.free_memory import return_free_memory
from qtool_runtime.generate import GenerationResult
from qtool_runtime.huge_pages import collapse_new_memory, private_memory
from qtool_runtime.integrity import check_files
from qtool_runtime.kernels import AUTO
from qtool_runtime.manifest import read
from qtool_runtime.model import Model
from qtool_runtime.prefix_memory import PrefixMemory
from qtool_runtime.saved_prefix import PrefixFiles
from qtool_runtime.text import Tokenizer
from qtool_runtime.threads import check_threads


def load(
    path: str | Path,
    *,
    engine: str = "onnxruntime",
    threads: int | None = None,
    spin: int | None = None,
    provider: str | None = None,
    kernels: str = AUTO,
    exact_drafts: bool = False,
    context: int | None = None,
    prefix_memory: int | None = None,
    verify: bool = False,
    huge_pages: bool = True,
    on_answer: Callable[[GenerationResult], None] | None = None,
) -> Model:
    """Loads an artifact.

    Everything that can be known from the manifest is checked before the engine reads a weight.

    Args:
        path: the folder that `qtool build` wrote.
        engine: what runs the model: "onnxruntime", or "genai" for onnxruntime-genai. Everything but the
            forward passes is the same with both.
        threads: CPU threads; None for the CPUs that affinity and container limits leave to this process.
        spin: microseconds for which a thread without work stays awake; None for 20, 0 for none at all, which
            saves power.
        provider: "cpu", "cuda", "directml" or "webgpu"; None for the one that the artifact was built for.
            There is no fallback to another one.
        kernels: what computes matrix products and attention on the CPU: "auto" for the best of the installed
            package qtool-kernels that this processor has, and ONNX Runtime's own without that package;
            "off" for ONNX Runtime's own; or an instruction set such as "avx2". `Model.kernels` says which it
            is; that an installed package cannot be used is also logged (logger "qtool_runtime").
        exact_drafts: make answers with drafts (`speculate`) those without, to the last bit. With the kernels
            of qtool-kernels they always are. ONNX Runtime's own, on x86-64, then take 5 to 20 % longer for a
            token; its kernels for Arm cannot.
        context: longest prompt and answer together, in tokens; None for what the artifact was planned for.
        prefix_memory: most bytes of keys and values to keep of earlier prompts and answers, so that a prompt
            that starts like one of them is only read from there on; 0 for none. None for what the artifact's
            memory plan has room for (`qtool inspect` shows it): one whole context, or a sixteenth of the
            device's memory if that is less.
        verify: also compare the SHA-256 of every file, and refuse unknown files. Sizes are always compared.
        huge_pages: on Linux, move the packed weights into huge pages, in the background, right after loading.
        on_answer: is called with the result of each answer that began, once it has ended for whatever
            reason, in the thread that ended it and before its KV cache is freed: be quick. An exception in
            it is logged (logger "qtool_runtime"), and the answer is not affected.

    Raises:
        ArtifactError: the folder is not a whole artifact.
        MissingExtraError: the engine, or the kernel package that was asked for, is not installed.
        IncompatibleRuntimeError: the installed engine cannot run it, or not with these kernels or
            `exact_drafts`.
        ContextLimitError: `context` is longer than planned.
        GenerationError: `threads`, `spin`, `context` or `prefix_memory` is out of its range, `on_answer` is
            not a function, or there is no such engine, or none with such kernels.
    """
    check_engine(engine)
    check_on_answer(on_answer)
    folder = Path(path)
    manifest = read(folder)
    check_files(folder, manifest, hashes=verify, extra=verify)
    settings = check_threads(threads, spin)
    context = check_context(context, manifest.context)
    memory = PrefixMemory(check_prefix_memory(prefix_memory, manifest.memory.prefix_memory))
    memory_before = private_memory() if huge_pages else []
    options = EngineOptions(provider, settings, context, kernels, exact_drafts)
    opened = open_engine(engine, folder, manifest, options)
    # After the weights: parsing needs memory for a while, which is then not on top of the packing of weights.
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    return_free_memory()
    if huge_pages:
        collapse_new_memory(memory_before)
    files = PrefixFiles.of(manifest, opened, memory)
    baked = manifest.baked_prompt
    if baked and files.usable and opened.provider == manifest.graph.provider:
        files.pin(folder / baked.kv_file)  # another provider's keys and values are not quite equal
    return Model(folder, manifest, opened, tokenizer, files, on_answer=on_answer)
