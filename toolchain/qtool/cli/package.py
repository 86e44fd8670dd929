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
@click.option(
    "--web",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write a page that runs ARTIFACT in a browser: static files for any web server.",
)
@click.option(
    "--node-modules",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Take the page's libraries from here. [default: the user's cache]",
)
@click.option("--fetch", is_flag=True, help="Let npm download the libraries that the cache does not have.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@json_option
def command(
    *,
    artifacts: tuple[Path, ...],
    model_package: Path | None,
    archive: Path | None,
    web: Path | None,
    node_modules: Path | None,
    fetch: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Prepare ARTIFACT for where it will run."""
    if sum(output is not None for output in (model_package, archive, web)) != 1:
        raise click.UsageError("Say what to make, one of --model-package, --archive and --web.")
    if web is None and (fetch or node_modules):
        raise click.UsageError("--fetch and --node-modules go with --web.")
    if model_package is not None:
        _write_model_package(artifacts, model_package, force, as_json)
    elif archive is not None:
        _write_archive(_only(artifacts, "--archive"), archive, force, as_json)
    elif web is not None:
        artifact = _only(artifacts, "--web")
        _write_page(artifact, web, force, as_json, node_modules=node_modules, fetch=fetch)


def _only(artifacts: tuple[Path, ...], option: str) -> Path:
    if len(artifacts) != 1:
        raise click.UsageError(f"{option} takes one artifact, not {len(artifacts)}.")
    return artifacts[0]


def _write_model_package(artifacts: tuple[Path, ...], folder: Path, force: bool, as_json: bool) -> None:
    from qtool.packages.model_package import write_model_package

    package = write_model_package(artifacts, folder, force=force)
    if as_json:
        print_json({"path": str(package.path), "variants": package.variants, "bytes": package.bytes})
        return
    count = f"{len(package.variants)} variant{'s' if len(package.variants) > 1 else ''}"
    click.echo(f"{package.path}  {count}, {megabytes(package.bytes)}")
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


def _write_page(
    artifact: Path, folder: Path, force: bool, as_json: bool, *, node_modules: Path | None, fetch: bool
) -> None:
    from qtool.web.page import package_web

    page = package_web(artifact, folder, node_modules=node_modules, fetch=fetch, force=force)
    if as_json:
        print_json({"path": str(page.path), "files": page.files, "bytes": page.bytes})
        return
    click.echo(f"{page.path}  {page.files} files, {megabytes(page.bytes)}")
    click.echo(f"try it: python3 -m http.server -d {page.path}, and open http://localhost:8000", err=True)
