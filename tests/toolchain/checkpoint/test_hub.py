"""Hugging Face ids: through the real huggingface_hub library, from a cache on disk or a local server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from huggingface_hub import constants

from qtool.checkpoint import open_checkpoint
from qtool.errors import SourceError, UnsupportedModelError
from support.tiny import TinyCheckpoint, write_tiny_checkpoint

MODEL = "Qwen/Qwen2.5-Tiny-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(cache: Path, folder: Path, *, without: tuple[str, ...] = ()) -> None:
    """Puts a folder into a cache as the library does: blobs named by hash, links to them, and a ref."""
    root = cache / f"models--{MODEL.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    snapshot.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "refs" / "v1.0").write_text(COMMIT)
    for path in folder.iterdir():
        if path.name not in without:
            blob = root / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.write_bytes(path.read_bytes())
            (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache. The library reads its environment when it is imported, hence its constants here."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", f"@{COMMIT}"])
def test_a_cached_model_is_opened_offline(
    tmp_path: Path, offline: Path, sharded: bool, revision: str
) -> None:
    tiny = write_tiny_checkpoint(tmp_path / "m", sharded=sharded)
    fill_cache(offline, tiny.folder)
    opened = open_checkpoint(MODEL + revision)
    assert (opened.name, opened.kind, opened.id, opened.revision) == (
        "Qwen2.5-Tiny-Instruct",
        "huggingface",
        MODEL,
        COMMIT,
    )
    for name, weight in opened.weights.items():
        np.testing.assert_array_equal(weight.read_all(), tiny.tensors[name])
    assert opened.sha256() == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(tiny.folder.glob("*.safetensors"))
    }


def test_the_environment_of_the_library_is_honoured(tmp_path: Path) -> None:
    """In a process of its own, through HF_HOME and HF_HUB_OFFLINE as a user sets them."""
    tiny = write_tiny_checkpoint(tmp_path / "m")
    (tmp_path / "home" / "hub").mkdir(parents=True)
    fill_cache(tmp_path / "home" / "hub", tiny.folder)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    program = f"from qtool.checkpoint import open_checkpoint as o; print(o({MODEL!r}).revision)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == COMMIT


def test_offline_and_not_cached(offline: Path) -> None:
    with pytest.raises(SourceError, match="not complete in the local cache") as caught:
        open_checkpoint(MODEL)
    assert MODEL in caught.value.message
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_offline_and_another_revision_is_cached(tmp_path: Path, offline: Path) -> None:
    fill_cache(offline, write_tiny_checkpoint(tmp_path / "m").folder)
    with pytest.raises(SourceError, match="@v2 is not complete"):
        open_checkpoint(f"{MODEL}@v2")


def test_an_interrupted_download(tmp_path: Path, offline: Path) -> None:
    tiny = write_tiny_checkpoint(tmp_path / "m", sharded=True)
    fill_cache(offline, tiny.folder, without=("model-00002-of-00002.safetensors",))
    with pytest.raises(SourceError, match="1 are not there"):
        open_checkpoint(MODEL)


def test_a_cache_without_weights(tmp_path: Path, offline: Path) -> None:
    fill_cache(offline, write_tiny_checkpoint(tmp_path / "m").folder, without=("model.safetensors",))
    with pytest.raises(SourceError, match=r"has neither model\.safetensors nor"):
        open_checkpoint(MODEL)


def test_a_plan_does_not_need_the_weights(tmp_path: Path, offline: Path) -> None:
    fill_cache(offline, write_tiny_checkpoint(tmp_path / "m").folder, without=("model.safetensors",))
    opened = open_checkpoint(MODEL, configuration_only=True)
    assert opened.revision == COMMIT
    assert not opened.weights


class Hub(ThreadingHTTPServer):
    """A hub with one repository, as much of it as the library asks for."""

    def __init__(self, files: dict[str, bytes], failure: tuple[int, str] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.failure = files, failure
        self.downloaded: set[str] = set()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        files = self.server.files
        if self.server.failure:
            status, code = self.server.failure
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "refused by the test"})
        elif path.startswith(f"/api/models/{MODEL}/revision/"):
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            self._json(
                [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for name, content in files.items()
                ]
            )
        elif path.startswith(f"/{MODEL}/resolve/{COMMIT}/") and path.rpartition("/")[2] in files:
            name = path.rpartition("/")[2]
            if self.command == "GET":
                self.server.downloaded.add(name)
            etag = hashlib.sha1(files[name]).hexdigest()
            self._send(200, files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub({}, None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        yield server
        server.shutdown()
        thread.join()


def contents(tiny: TinyCheckpoint) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tiny.folder.iterdir()}


def test_a_model_is_downloaded_without_what_is_not_needed(tmp_path: Path, hub: Hub) -> None:
    tiny = write_tiny_checkpoint(tmp_path / "m", sharded=True)
    hub.files = contents(tiny) | {
        "pytorch_model.bin": b"unsafe",
        "README.md": b"text",
        "onnx/model.safetensors": b"other",
        "model.safetensors.index.json.bak": b"old",
    }
    opened = open_checkpoint(MODEL)
    assert opened.revision == COMMIT
    assert hub.downloaded == contents(tiny).keys()
    np.testing.assert_array_equal(
        opened.weights["model.norm.weight"].read_all(), tiny.tensors["model.norm.weight"]
    )


def test_an_unsupported_model_costs_no_download_of_weights(tmp_path: Path, hub: Hub) -> None:
    tiny = write_tiny_checkpoint(tmp_path / "m", model_type="qwen2")
    hub.files = contents(tiny)
    hub.files["config.json"] = hub.files["config.json"].replace(b'"qwen2"', b'"qwen3_moe"')
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        open_checkpoint(MODEL)
    assert "model.safetensors" not in hub.downloaded


@pytest.mark.parametrize(
    ("without", "extra", "message", "hint"),
    [
        (
            "model.safetensors",
            "pytorch_model.bin",
            r"only pytorch_model\.bin: .* can run any program",
            "safetensors",
        ),
        ("config.json", "model-q4_0.gguf", r"has no config\.json, only GGUF files", "hf download"),
        ("model.safetensors", "README.md", r"has neither model\.safetensors nor", "config.json"),
    ],
)
def test_a_repository_without_safetensors_says_what_it_has(
    tmp_path: Path, hub: Hub, without: str, extra: str, message: str, hint: str
) -> None:
    hub.files = contents(write_tiny_checkpoint(tmp_path / "m")) | {extra: b"?"}
    del hub.files[without]
    with pytest.raises(SourceError, match=message) as caught:
        open_checkpoint(MODEL)
    assert hint in caught.value.hint
    assert extra not in hub.downloaded


@pytest.mark.parametrize(
    ("status", "code", "message", "hint"),
    [
        (403, "GatedRepo", "is gated", "hf auth login"),
        (401, "RepoNotFound", "nor a repository", "spelling"),
        (404, "RepoNotFound", "nor a repository", "spelling"),
        (404, "RevisionNotFound", "has no revision 'v9'", "commits"),
        (500, "", "cannot be reached|failed", "connection"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, status: int, code: str, message: str, hint: str) -> None:
    hub.failure = (status, code)
    with pytest.raises(SourceError, match=message) as caught:
        open_checkpoint(f"{MODEL}@v9")
    assert hint in caught.value.hint


def test_nobody_listens(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="cannot be reached"):
        open_checkpoint(MODEL)
