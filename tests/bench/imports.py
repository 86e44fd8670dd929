"""What the packages cost before any model is loaded: import time, `--help` time, installed size.

    python tests/bench/imports.py [--skip-install]

- Import time of `qtool_runtime` alone, of `qtool_runtime.load` (which brings numpy), and of numpy, each in
  fresh child processes, less the time of a child that imports nothing; median of `--rounds`, interleaved.
- `qtool --help`, the whole child process, and a child that does nothing, to compare.
- The runtime's installed closure: a new virtual environment, `pip install ROOT[cpu]`, and the bytes of
  site-packages less those of pip and setuptools themselves. It needs a package index, as pip is configured.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from measure import MEGABYTE, argument_parser, finish, folder_bytes, run_child, say

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "nothing": ["-c", "pass"],
    "import qtool_runtime": ["-c", "import qtool_runtime"],
    "import qtool_runtime.load": ["-c", "from qtool_runtime import load"],
    "import numpy": ["-c", "import numpy"],
    "qtool --help": ["-m", "qtool", "--help"],
}
INSTALLERS = ("pip", "setuptools", "pkg_resources", "_distutils_hack")


def startup_seconds(rounds: int) -> dict[str, float]:
    """Returns the median wall time of a child process for each program."""
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(rounds + 1):
        for name, arguments in PROGRAMS.items():
            child = run_child([sys.executable, *arguments])
            if number:  # the first compiles bytecode and fills the page cache
                times[name].append(child.seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def installed_closure() -> tuple[int, dict[str, int]]:
    """Installs the runtime into a new environment; returns its bytes, and those of its largest packages."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder, with_pip=True)
        python = next(
            path for path in (folder / "bin/python", folder / "Scripts/python.exe") if path.exists()
        )
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", f"{ROOT}[cpu]"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        packages = next(folder.rglob("site-packages"))
        sizes = {
            path.name: folder_bytes(path) if path.is_dir() else path.stat().st_size
            for path in packages.iterdir()
            if path.name.split("-")[0].split(".")[0] not in INSTALLERS
        }
        largest = dict(sorted(sizes.items(), key=lambda item: -item[1])[:8])
        return sum(sizes.values()), largest


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--skip-install", action="store_true", help="leave out the installed closure")
    arguments = parser.parse_args()
    seconds = startup_seconds(arguments.rounds)
    for name, value in seconds.items():
        more = value - seconds["nothing"]
        say(f"{name:26} {1000 * value:6.0f} ms, {1000 * more:6.0f} ms more than nothing")
    result: dict[str, object] = {"rounds": arguments.rounds, "seconds": seconds}
    if not arguments.skip_install:
        total, largest = installed_closure()
        say(f"installed closure of the runtime: {total / MEGABYTE:.0f} MB")
        for name, size in largest.items():
            say(f"  {name:26} {size / MEGABYTE:6.1f} MB")
        result |= {"closure_bytes": total, "closure_largest": largest}
    finish(result)


if __name__ == "__main__":
    main()
