"""Types of the fixtures in tests/conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.tiny import TinyCheckpoint

Checkpoints = Callable[..., TinyCheckpoint]
"""`tiny_checkpoint(architecture, tied=...)`"""
Artifacts = Callable[..., Path]
"""`tiny_artifact(target, architecture, tied=...)`"""
Golden = Callable[[str, Any], None]
"""`golden("plan.json", document)`"""
Node = Callable[..., Any]
"""`node("encode", texts=[...])`"""
