"""`qtool package`."""

from __future__ import annotations

from pathlib import Path

import click

from qtool.cli.output import json_option, megabytes, print_json


@click.command(name="package")
@click.argument("artifacts", metavar="ARTIFACT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--model-package",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write artifacts for several execution providers as one ONNX Runtime model package.",
)
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write ARTIFACT as a zip archive for an app's assets or a download; its files can be mapped.",
)
@click.option("--force", is_flag=True, help="Replace what is there.")
@json_option
def command(
    *,
    artifacts: tuple[Path, ...],
    model_package: Path | None,
    archive: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Prepare ARTIFACT for where it will run."""
    if (model_package is None) == (archive is None):
        raise click.UsageError("Say what to make: --model-package FOLDER or --archive FILE.")
    if model_package is not None:
        _write_model_package(artifacts, model_package, force, as_json)
    elif archive is not None:
        if len(artifacts) != 1:
            raise click.UsageError(f"--archive takes one artifact, not {len(artifacts)}.")
        _write_archive(artifacts[0], archive, force, as_json)


def _write_model_package(artifacts: tuple[Path, ...], folder: Path, force: bool, as_json: bool) -> None:
    from qtool.packages.model_package import write_model_package

    package = write_model_package(artifacts, folder, force=force)
    if as_json:
        print_json({"path": str(package.path), "variants": package.variants, "bytes": package.bytes})
        return
    click.echo(f"{package.path}  {len(package.variants)} variants, {megabytes(package.bytes)}")
    for name, provider in package.variants.items():
        click.echo(f"{package.path / name}  {provider}")


def _write_archive(artifact: Path, file: Path, force: bool, as_json: bool) -> None:
    from qtool.packages.archive import STORE_LIMITS, write_archive

    archive = write_archive(artifact, file, force=force)
    if as_json:
        stores = [
            {"store": limit.store, "bytes": limit.bytes, "fits": archive.fits(limit)}
            for limit in STORE_LIMITS
        ]
        print_json({"path": str(file), "files": archive.files, "bytes": archive.bytes, "stores": stores})
        return
    click.echo(f"{file}  {archive.files} files, {megabytes(archive.bytes)}")
    for limit in STORE_LIMITS:
        verdict = "fits" if archive.fits(limit) else "too large"
        click.echo(f"{verdict}: {limit.store}, at most {megabytes(limit.bytes)}")
