"""Which of the peers that were asked for can run here: their packages and their models are looked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtool.bench.peers import ARTIFACT, GGUF, OPENVINO, PEERS, Peers
from qtool.bench.process import started
from qtool.bench.rounds import Contender
from qtool.errors import EngineError, MissingExtraError, QtoolError, SourceError
from qtool_runtime.manifest import Manifest

SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
"""What a peer's model and the artifact must have in common."""


def choose(
    peers: Peers, artifact: Path, manifest: Manifest, provider: str
) -> tuple[list[Contender], dict[str, str]]:
    """Returns the peers that can run, and why each of the others cannot.

    Args:
        peers: what was asked for.
        artifact: its folder.
        manifest: its manifest.
        provider: where the artifact runs.

    Raises:
        SourceError: a peer's model is not there, or not the artifact's model; or a peer that was asked for
            by name has none.
        UnsupportedModelError: a peer's model is of a kind that no artifact has.
        MissingExtraError: a peer that was asked for by name is not installed.
        EngineError: one cannot run where the artifact runs, or its interpreter cannot.
    """
    for kind, path in peers.models.items():
        check_model(kind, path, manifest)
    models = {**peers.models, ARTIFACT: artifact}
    contenders, skipped = [], {}
    for name in PEERS:
        if not (peers.all or name in peers.names):
            continue
        python = peers.pythons.get(name, sys.executable)
        try:
            model = _model(name, models, provider)
            version = _installed(name, python)
        except QtoolError as error:
            if name in peers.names:
                raise
            skipped[name] = error.message
            continue
        chosen = "" if provider == manifest.graph.provider else provider
        contenders.append(Contender(name, model, python, chosen, name in peers.names, version))
    return contenders, skipped


def _model(name: str, models: Mapping[str, Path], provider: str) -> Path:
    """Returns what a peer loads."""
    kinds = PEERS[name].kinds
    if ARTIFACT not in kinds and provider != "cpu":
        raise EngineError(f"{name} is measured on the CPU only, and the artifact runs on {provider}")
    for kind in kinds:
        if kind in models:
            return models[kind]
    options = " or ".join(f"--{kind}" for kind in kinds)
    raise SourceError(
        f"{name} needs the same model in a form of its own ({options})",
        hint=f"Give it: {options} PATH",
    )


def _installed(name: str, python: str) -> str | None:
    """Returns a peer's version, which may be unknown."""
    with started(name, python) as process:
        answer = process.ask(check=True)
    if not answer["installed"]:
        raise MissingExtraError(
            f"{name} is not installed for {python}",
            hint=f"Run: pip install {PEERS[name].install}; or say where it is: --peer-python {name}=PYTHON",
        )
    version: str | None = answer["version"]
    return version


def check_model(kind: str, path: Path, manifest: Manifest) -> None:
    """Refuses a file or folder that is not of its kind, or holds another model than the artifact.

    Raises:
        SourceError: it is not there, of another kind, or another model.
        UnsupportedModelError: it is a model of a kind that no artifact has.
        MissingExtraError: the packages that read it are not installed.
    """
    is_file = kind == GGUF
    if not (path.is_file() if is_file else path.is_dir()):
        raise SourceError(
            f"--{kind}: there is no {'file' if is_file else 'folder'} {path}", hint="Check the spelling."
        )
    if kind == OPENVINO:
        if not (path / "openvino_model.xml").is_file():
            raise SourceError(
                f"--{kind}: {path} is not an OpenVINO model: it has no openvino_model.xml",
                hint="Give the folder that optimum-intel exported.",
            )
        return
    from qtool.checkpoint import open_checkpoint

    config: Any = open_checkpoint(str(path.resolve())).config
    for name in SAME:
        found, expected = getattr(config, name), getattr(manifest.model, name)
        if found != expected:
            raise SourceError(
                f"--{kind}: {path} is another model than the artifact: its {name} is {found}, not {expected}",
                hint="Give the model that the artifact was built from.",
            )
