"""What a source string means, and strings that mean nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qtool.checkpoint import open_checkpoint
from qtool.errors import MissingExtraError, SourceError
from support.tiny import write_tiny_checkpoint
from support.tiny_gguf import write_tiny_gguf


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("", "not a Hugging Face id"),
        ("Qwen2.5-0.5B", "not a Hugging Face id"),
        ("./Qwen/Qwen3", r"no file or folder './Qwen/Qwen3'"),
        ("../x", "no file or folder"),
        ("/nowhere/at/all", "no file or folder"),
        ("~/no-such-model", "no file or folder"),
        ("~no_such_user/x", "no file or folder"),
        ("models/q4.gguf", r"no file or folder 'models/q4.gguf'"),
        ("Qwen/model.GGUF", "no file or folder"),
        ("a/b/c", "no file or folder"),
        ("Qwen/Qwen3@", "no file or folder"),
        ("Qwen/../x", "no file or folder"),
        ("nul\0byte", "cannot read"),
        ("x" * 5000, "cannot read"),
        ("-rf/x", "no file or folder"),
        ("Qwen/名前", "no file or folder"),
    ],
)
def test_a_string_that_names_nothing(model: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        open_checkpoint(model)
    assert len(caught.value.message) < 500


def test_an_existing_path_goes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_checkpoint(tmp_path / "Qwen" / "Qwen2.5-Tiny")
    opened = open_checkpoint("Qwen/Qwen2.5-Tiny")
    assert (opened.kind, opened.name) == ("safetensors", "Qwen2.5-Tiny")


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_tiny_checkpoint(tmp_path / "m")
    assert open_checkpoint("~/m").name == "m"


def test_a_gguf_file_is_known_by_its_content_too(tmp_path: Path) -> None:
    """Blobs in download caches have no suffix."""
    write_tiny_gguf(tmp_path / "0123abcd")
    assert open_checkpoint(str(tmp_path / "0123abcd")).kind == "gguf"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_a_pickle_file_is_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(SourceError, match="can run any program") as caught:
        open_checkpoint(str(tmp_path / name))
    assert "safetensors" in caught.value.hint


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_part_of_a_folder_asks_for_the_folder(tmp_path: Path, name: str) -> None:
    tiny = write_tiny_checkpoint(tmp_path / "m")
    with pytest.raises(SourceError, match="only a part") as caught:
        open_checkpoint(str(tiny.folder / name))
    assert str(tiny.folder) in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"GG", b"hello, this is no model at all"])
def test_any_other_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(SourceError, match="is not a model"):
        open_checkpoint(str(tmp_path / "notes.txt"))


def test_a_folder_called_like_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(SourceError, match="is empty"):
        open_checkpoint(str(tmp_path / "x.gguf"))


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "deleted")
    for name in ("loop", "gone.gguf"):
        with pytest.raises(SourceError, match="cannot read"):
            open_checkpoint(str(tmp_path / name))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(SourceError, match="device, pipe or socket"):
        open_checkpoint(str(tmp_path / "pipe.gguf"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").chmod(0)
    with pytest.raises(SourceError, match="Permission denied"):
        open_checkpoint(str(tmp_path / "a.gguf"))


def test_permission_errors_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root nothing is forbidden, so here the operating system is made to refuse."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    tiny = write_tiny_checkpoint(tmp_path / "m")
    for method in ("stat", "iterdir", "open"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, method, refuse)
            with pytest.raises(SourceError, match="Permission denied") as caught:
                open_checkpoint(str(tiny.folder))
        assert "permissions" in caught.value.hint


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf").path
    for module in [name for name in sys.modules if name.startswith(("qtool.checkpoint.gguf", "gguf"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match="gguf") as caught:
        open_checkpoint(str(path))
    assert "qtool-edge[build]" in caught.value.hint


def test_a_folder_needs_neither_gguf_nor_the_hub_library(tmp_path: Path) -> None:
    """They take a second to import together, and are needed for their own sources only."""
    tiny = write_tiny_checkpoint(tmp_path / "m")
    program = (
        "import sys; from qtool.checkpoint import open_checkpoint; "
        f"open_checkpoint({str(tiny.folder)!r}).tokenizer_files(); "
        "print([m for m in ('gguf', 'huggingface_hub', 'safetensors', 'onnx', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
