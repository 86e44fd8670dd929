"""Names that can be used for a folder."""

from __future__ import annotations

import re

MAX_NAME = 96


def folder_name(text: str) -> str:
    """Returns `text` as a plain folder name: letters, digits, dots, dashes and underscores; never empty."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text[: 4 * MAX_NAME])
    return cleaned.strip(".-")[:MAX_NAME].rstrip(".-") or "model"
