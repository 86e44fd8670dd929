"""Every peer for real, with a tiny model in its own form; those that are not installed are skipped.

See `support.interpreters` for engines that have an environment of their own.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

import qtool
from qtool.bench.benchmark import benchmark
from qtool.bench.lengths import Lengths
from qtool.bench.peers import PEERS, Peers
from qtool.errors import MissingExtraError
from support.interpreters import peer_pythons
from support.tiny import write_tiny_checkpoint
from support.tiny_gguf import write_tiny_gguf


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_runs_the_same_model(peer: str, tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", architecture="qwen2").folder
    artifact = qtool.build(checkpoint, target="x64-int8", output=tmp_path / "artifact").path
    # openvino-genai looks for the file's type, as all converters write it.
    gguf_file = write_tiny_gguf(
        tmp_path / "tiny.gguf", edit=lambda writer: writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    )
    models = {"gguf": gguf_file.path, "checkpoint": checkpoint}
    lengths = Lengths((5, 100), (0, 100), 40)
    peers = Peers(names=(peer,), pythons=peer_pythons(), models=models)
    try:
        report = benchmark(artifact, lengths=lengths, threads=1, rounds=2, peers=peers).to_dict()
    except MissingExtraError as error:
        pytest.skip(error.message)
    engine = report["engines"][peer]
    assert engine["version"]
    for length in ("5", "100"):
        assert len(engine["prompts"][length]["tokens_per_second"]["rounds"]) == 2
    for depth in ("0", "100"):
        assert [len(turns) for turns in engine["decode"][depth]["tokens_per_second"]["turns"]] == [2, 2]
        assert report["ratios"][peer]["decode"][depth]["tokens_per_second"]["median"] > 0
    assert report["skipped"] == {}
