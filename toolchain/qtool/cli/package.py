"""`qtool package`."""

from __future__ import annotations

from pathlib import Path

import click

from qtool.cli.output import json_option, megabytes, print_json


@click.command(name="package")
@click.argument("artifact", type=click.Path(path_type=Path))
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
    *, artifact: Path, web: Path | None, node_modules: Path | None, fetch: bool, force: bool, as_json: bool
) -> None:
    """Prepare ARTIFACT for where it will run."""
    from qtool.web.page import package_web

    if web is None:
        raise click.UsageError("Say what to make: --web FOLDER.")
    package = package_web(artifact, web, node_modules=node_modules, fetch=fetch, force=force)
    if as_json:
        print_json({"path": str(package.path), "files": package.files, "bytes": package.bytes})
        return
    click.echo(f"{package.path}  {package.files} files, {megabytes(package.bytes)}")
    click.echo(f"try it: python3 -m http.server -d {package.path}, and open http://localhost:8000", err=True)
