"""The one place where tests take tolerances from: tests/tolerances.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

TOLERANCES: dict[str, dict[str, float]] = tomllib.loads(
    (Path(__file__).parents[1] / "tolerances.toml").read_text("utf-8")
)
