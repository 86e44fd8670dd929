"""Sizes on the command line."""

from __future__ import annotations

import click
import pytest

from qtool.cli.quality_options import megabytes


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("300", 300), ("300MB", 300), ("2.5 mb", 2.5), ("1.2GB", 1200), (".5", 0.5), (400.0, 400)],
)
def test_sizes(typed: str | float, expected: float) -> None:
    assert megabytes(typed) == pytest.approx(expected)


@pytest.mark.parametrize("typed", ["", "0", "0MB", "-1", "MB", "1 TB", "1e3", "inf", "300 MB ", "٣"])
def test_what_is_no_size(typed: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is not a size such as 300, 300MB or 1\.2GB"):
        megabytes(typed)
