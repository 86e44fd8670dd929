"""`qtool bench`."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from qtool.bench.lengths import ROUNDS, Lengths
from qtool.bench.peers import PEERS, Peers
from qtool.cli.load_options import kernels_option
from qtool.cli.output import json_option, print_json

DEFAULTS = Lengths()


def _read_pythons(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Reads NAME=PYTHON pairs."""
    pythons = {}
    for text in values:
        name, _, python = text.partition("=")
        if name not in PEERS or not python:
            raise click.BadParameter(f"{text!r} is not NAME=PYTHON with one of {', '.join(PEERS)}.")
        if shutil.which(python) is None:
            raise click.BadParameter(f"there is no program {python!r}.")
        pythons[name] = python
    return pythons


@click.command(name="bench")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--prompt",
    "prompts",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="TOKENS",
    default=DEFAULTS.prompts,
    show_default=True,
    help="Length of a prompt to read; may be given several times.",
)
@click.option(
    "--depth",
    "depths",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="TOKENS",
    default=DEFAULTS.depths,
    show_default=True,
    help="Length of the text in the cache when generating starts; may be given several times.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    default=DEFAULTS.tokens,
    show_default=True,
    help="How many to generate at each depth.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=ROUNDS,
    show_default=True,
    help="How often each engine is started and measured.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Processor threads. [default: those this process may use]",
)
@click.option("--provider", help="Run on this provider instead of the artifact's, such as cpu.")
@kernels_option
@click.option("--peers", "all_peers", is_flag=True, help="Compare with every other engine that can run.")
@click.option(
    "--peer",
    "names",
    type=click.Choice(list(PEERS)),
    multiple=True,
    help="Compare with this engine; may be given several times. It is an error if it cannot run.",
)
@click.option(
    "--peer-python",
    "pythons",
    multiple=True,
    metavar="NAME=PYTHON",
    callback=_read_pythons,
    help="Interpreter of the environment that has this engine, if it is not qtool's own.",
)
@click.option(
    "--gguf",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The same model for llama.cpp and openvino-genai, such as a Q4_0 file.",
)
@click.option(
    "--openvino",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The same model for openvino-genai, as OpenVINO IR.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The same model for transformers, as safetensors.",
)
@json_option
def command(
    *,
    artifact: Path,
    prompts: tuple[int, ...],
    depths: tuple[int, ...],
    tokens: int,
    rounds: int,
    threads: int | None,
    provider: str | None,
    kernels: str,
    all_peers: bool,
    names: tuple[str, ...],
    pythons: dict[str, str],
    gguf: Path | None,
    openvino: Path | None,
    checkpoint: Path | None,
    as_json: bool,
) -> None:
    """Measure the speed and memory of ARTIFACT on this machine.

    Reads prompts of several lengths, and generates after several. With --peers, other engines that are
    installed run the same tokens in turn; those that need a file of their own are told by --gguf, --openvino
    and --checkpoint.
    """
    from qtool.bench.benchmark import benchmark
    from qtool.cli.bench_tables import print_report

    models = {"gguf": gguf, "openvino": openvino, "checkpoint": checkpoint}
    given = {kind: path for kind, path in models.items() if path is not None}
    if not (all_peers or names) and (given or pythons):
        option = next(iter(given), "peer-python")
        raise click.UsageError(f"--{option} is for other engines; add --peers or --peer NAME.")
    report = benchmark(
        artifact,
        lengths=Lengths(prompts, depths, tokens),
        threads=threads,
        rounds=rounds,
        provider=provider,
        kernels=kernels,
        peers=Peers(all_peers, names, pythons, given),
        progress=lambda line: click.echo(line, err=True),
    )
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)
