"""The artifact's contract: `manifest.json`. The reader owns the format; the compiler imports it to write.

The document is the JSON form of `Manifest`: keys sorted, no timestamps, no paths outside the folder, so that
equal inputs give equal bytes. Everything that the runtime needs to load and run is in here; the target file
that the artifact was built for is never read again. The document carries its own SHA-256, so that a changed
manifest is noticed like any other changed file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qtool_runtime.errors import ArtifactError
from qtool_runtime.records import from_data

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
DIGEST_KEY = "manifest_sha256"
"""Key of the SHA-256 (hex) of the canonical document without this key."""
MAXIMUM_BYTES = 16 << 20
"""A larger manifest is refused before it is read; real ones are under 100 kB."""


@dataclass(frozen=True)
class ModelInfo:
    """The shape of the network, in counts."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    parameters: int
    tie_word_embeddings: bool


@dataclass(frozen=True)
class Source:
    """Where the weights came from. `files` maps each checkpoint file's name to its SHA-256 (hex)."""

    kind: str
    id: str
    revision: str | None
    files: dict[str, str]


@dataclass(frozen=True)
class FileEntry:
    """One file of the artifact; `path` is relative and uses forward slashes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class OperatorSet:
    """Operators of one domain, with how often each occurs. The standard domain is "ai.onnx"."""

    domain: str
    version: int
    operators: dict[str, int]


@dataclass(frozen=True)
class Graph:
    """How to drive the model file."""

    file: str
    provider: str
    minimum_onnxruntime: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    past_key: str
    """Input name pattern such as "past_key_values.%d.key"."""
    past_value: str
    present_key: str
    present_value: str
    logits_rows_input: str | None
    """Optional int64 input of shape (1,): how many rows of logits to compute, counted from the last
    position. None: the graph returns logits for every position."""


@dataclass(frozen=True)
class KvCache:
    """Layout of cached keys and values: each of shape (batch, num_key_value_heads, tokens, head_dim)."""

    update: str
    """"in_place": past and present may share one preallocated buffer. "concatenate": present is a new,
    longer tensor."""
    dtype: str
    """"float32", "float16" or "int8"; the scales of an int8 cache are in the graph."""
    layers: int
    num_key_value_heads: int
    head_dim: int
    bytes_per_token: int


@dataclass(frozen=True)
class Calibration:
    """The text that the scales of an int8 KV cache were measured on: what it is, and how much was read."""

    sha256: str
    tokens: int


@dataclass(frozen=True)
class BakedPrompt:
    """A system prompt that the build has read for the device. Both paths are among the artifact's files."""

    text_file: str
    """Its text, UTF-8."""
    kv_file: str
    """Keys and values of the tokens that conversations with it start with (see `kv_file.py`)."""
    tokens: int


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device at the default context. `peak` is the sum; `budget` is the target's."""

    weights: int
    kv_cache: int
    prefix_memory: int
    """What is kept of earlier prompts and answers, at most (see `prefix_memory.py`), unless `load` is told
    another bound."""
    activations: int
    runtime: int
    peak: int
    budget: int


@dataclass(frozen=True)
class QuantizedGroup:
    """Weight matrices of one kind ("attention", "mlp", "embedding", "lm_head") that are stored alike."""

    group: str
    bits: int
    group_size: int | None
    symmetric: bool | None
    algorithm: str
    tensors: tuple[str, ...]
    """Their Hugging Face names."""
    bytes: int


@dataclass(frozen=True)
class SpentBits:
    """What there was to spend where bits and group size were chosen for each matrix by what it costs."""

    budget: int
    """Bytes that the matrices might take."""
    bytes: int
    """Bytes that they take."""
    weights: int
    """Numbers that are in them."""


@dataclass(frozen=True)
class Generation:
    """Token ids and sampling defaults, from the model's generation_config.json."""

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float


@dataclass(frozen=True)
class Quality:
    """Agreement with the source in float32, measured token by token on a text with the given SHA-256.

    KL is the divergence KL(source || artifact) in nats, over the whole vocabulary.
    """

    kl_mean: float
    kl_standard_error: float
    """Of the mean."""
    kl_median: float
    kl_p99: float
    top1_agreement: float
    """Share of the positions where both find the same token the most probable."""
    perplexity: float
    source_perplexity: float
    tokens: int
    window: int
    """Tokens that saw each other."""
    text_sha256: str
    provider: str
    """Where the artifact ran, such as "cpu"."""


@dataclass(frozen=True)
class Manifest:
    """The whole document."""

    format_version: int
    name: str
    context: int
    """Longest prompt and answer together, in tokens."""
    model: ModelInfo
    source: Source
    target: dict[str, Any]
    tools: dict[str, str]
    files: tuple[FileEntry, ...]
    operators: tuple[OperatorSet, ...]
    graph: Graph
    kv_cache: KvCache
    calibration: Calibration | None
    memory: MemoryPlan
    quantization: tuple[QuantizedGroup, ...]
    spent_bits: SpentBits | None
    generation: Generation
    baked_prompt: BakedPrompt | None
    quality: Quality | None

    def kv_digest(self, provider: str) -> str:
        """Returns a SHA-256 (hex) of what determines the keys and values of given tokens.

        These are the graph, the weights (the files beside the graph that have its name and a suffix), and the
        provider that computes.
        """
        graph = self.graph.file
        files = [asdict(entry) for entry in self.files if f"{entry.path}.".startswith(f"{graph}.")]
        return hashlib.sha256(_canonical({"files": files, "provider": provider}).encode()).hexdigest()

    def to_json(self) -> str:
        """Returns the canonical text: sorted keys, two spaces, one trailing newline, with its digest."""
        document = asdict(self)
        digest = hashlib.sha256(_canonical(document).encode()).hexdigest()
        return _canonical(document | {DIGEST_KEY: digest})


def _canonical(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read(folder: str | Path) -> Manifest:
    """Reads and checks the manifest of an artifact folder.

    Raises:
        ArtifactError: the folder has no manifest, or it is malformed, of another format version, or names a
            file outside the folder.
    """
    path = Path(folder) / FILE_NAME
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise ArtifactError(
                f"{path} is {path.stat().st_size} bytes; a manifest has at most {MAXIMUM_BYTES}"
            )
        text = path.read_bytes().decode("utf-8")
        data = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{Path(folder)} is not an artifact: it has no {FILE_NAME}",
            hint="Give the folder that `qtool build` wrote.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", hint="Build the artifact again.") from error
    if not isinstance(data, dict) or "format_version" not in data:
        raise ArtifactError(
            f"{path} is not the manifest of an artifact: it has no format_version",
            hint="Give the folder that `qtool build` wrote; of a model package, that of a variant.",
        )
    if data["format_version"] != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has the format version {data['format_version']!r}; this runtime reads {FORMAT_VERSION}",
            hint="Build the artifact again, or install the runtime that goes with it.",
        )
    data.pop(DIGEST_KEY, None)
    try:
        manifest = from_data(Manifest, data)
        unchanged = manifest.to_json() == text
    except ValueError as error:  # RecordError, or a number that JSON does not have
        raise ArtifactError(f"{path} is malformed: {error}", hint="Build the artifact again.") from error
    if not unchanged:
        raise ArtifactError(
            f"{path} was changed after the build: its text does not have the SHA-256 it carries",
            hint="Build the artifact again; do not edit its files.",
        )
    _check_values(manifest)
    return manifest


def _check_values(manifest: Manifest) -> None:
    """Refuses what has the right types and still makes no sense: counts that a reader would allocate for.

    Raises:
        ArtifactError: a count is out of its range, a file is named twice or outside the folder, or the graph
            is not among the files.
    """
    cache = manifest.kv_cache
    for name, value, most in (
        ("context", manifest.context, 1 << 24),
        ("model.vocab_size", manifest.model.vocab_size, 1 << 24),
        ("kv_cache.layers", cache.layers, 1 << 12),
        ("kv_cache.num_key_value_heads", cache.num_key_value_heads, 1 << 12),
        ("kv_cache.head_dim", cache.head_dim, 1 << 16),
    ):
        if not 1 <= value <= most:
            raise ArtifactError(f"the manifest's {name} is {value}; valid: 1 to {most}")
    paths: set[str] = set()
    for entry in manifest.files:
        check_path(entry.path)
        if entry.path in paths:
            raise ArtifactError(f"the manifest names the file {entry.path!r} twice")
        paths.add(entry.path)
    named = {"graph": manifest.graph.file}
    if manifest.baked_prompt:
        named |= {
            "baked text": manifest.baked_prompt.text_file,
            "baked prompt": manifest.baked_prompt.kv_file,
        }
    for name, path in named.items():
        if path not in paths:
            raise ArtifactError(f"the manifest's {name} {path!r} is not among its files")


def check_path(path: str) -> None:
    """Refuses a path that could leave the artifact's folder.

    Raises:
        ArtifactError: the path is absolute, has a drive, a backslash, a control character or a ".." part.
    """
    pure = PurePosixPath(path)
    foreign = any(character in "\\:" or ord(character) < 32 for character in path)
    if pure.is_absolute() or ".." in pure.parts or foreign or not pure.parts:
        raise ArtifactError(
            f"the manifest names the file {path!r}, which is not inside the artifact",
            hint="Do not load this artifact; build it again from its source.",
        )
