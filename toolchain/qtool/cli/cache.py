"""`qtool cache`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtool.cli.output import json_option, megabytes, print_facts, print_json, print_table
from qtool.errors import ArtifactError
from qtool_runtime import manifest

if TYPE_CHECKING:
    from qtool.build_cache import BuildCache, Entry


@click.command(name="cache")
@click.option("--clear", is_flag=True, help="Drop everything that is kept.")
@json_option
def command(*, clear: bool, as_json: bool) -> None:
    """Show what `qtool build --cache` has kept, or drop it.

    QTOOL_CACHE_DIR is its folder, QTOOL_CACHE_BYTES its largest size; what has not been used for longest
    makes room for what is new. QTOOL_CACHE=1 turns the cache on for every build.
    """
    from qtool.build_cache import default_cache

    cache = default_cache()
    if clear:
        freed = cache.clear()
        if as_json:
            print_json({"path": str(cache.folder), "freed": freed})
        else:
            click.echo(f"{cache.folder}  {megabytes(freed)} dropped")
        return
    entries = cache.entries()
    if as_json:
        _print_json(cache, entries)
        return
    print_facts(
        [
            ("cache", str(cache.folder)),
            ("size", f"{megabytes(sum(each.bytes for each in entries))} of {megabytes(cache.most_bytes)}"),
        ]
    )
    if entries:
        click.echo()
        print_table(("artifact", "target", "size", "last used", "key"), [_row(entry) for entry in entries])


def _row(entry: Entry) -> tuple[str, ...]:
    name, target = _names(entry.path)
    return name, target, megabytes(entry.bytes), _time(entry), entry.path.name[:12]


def _print_json(cache: BuildCache, entries: list[Entry]) -> None:
    documents = []
    for entry in entries:
        name, target = _names(entry.path)
        documents.append(
            {
                "key": entry.path.name,
                "name": name,
                "target": target,
                "bytes": entry.bytes,
                "last_used": _time(entry),
            }
        )
    print_json({"path": str(cache.folder), "most_bytes": cache.most_bytes, "entries": documents})


def _names(path: Path) -> tuple[str, str]:
    try:
        document = manifest.read(path)
    except ArtifactError:
        return "(damaged)", ""
    return document.name, str(document.target.get("name"))


def _time(entry: Entry) -> str:
    return datetime.fromtimestamp(entry.last_used, UTC).isoformat(" ", "minutes").removesuffix("+00:00")
