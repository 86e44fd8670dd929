"""Programs that stand in for a Python interpreter, and the interpreters of other engines.

Some engines need an environment of their own. `QTOOL_PEER_PYTHONS` says where: "NAME=PYTHON" pairs as for
`qtool bench --peer-python`, with ":" (on Windows ";") between them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

RECORDER = """
import subprocess, sys
engine = sys.argv[-1]
child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE, text=True)
for line in sys.stdin:
    with open({log!r}, "a") as log:
        log.write(f"{{engine}} {{line}}")
    child.stdin.write(line)
    child.stdin.flush()
child.stdin.close()
sys.exit(child.wait())
"""

FAILING = """
import json, sys
with open({log!r}, "a") as log:
    log.write("start\\n")
starts = len(open({log!r}).readlines())
for line in sys.stdin:
    if next(iter(json.loads(line))) == {request!r} and starts >= {start}:
        sys.exit("first line\\nthe last words")
    print(json.dumps({{"installed": True, "version": "1", "seconds": 0.01, "import_seconds": 0.1,
                       "load_seconds": 0.1}} if "load" not in line
                     else {{"import_seconds": 0.1, "load_seconds": 0.1}}), flush=True)
"""


def recorder(folder: Path) -> tuple[str, Path]:
    """Returns an interpreter that appends each request to a log, as a line "ENGINE REQUEST", and the log."""
    log = folder / "requests"
    return _program(folder / "recorder", RECORDER.format(log=str(log))), log


def failing(folder: Path, request: str, *, start: int = 1) -> str:
    """Returns an interpreter that answers at once, but fails at a request once it was started so often."""
    name = f"fails-at-{request}-{start}"
    code = FAILING.format(log=str(folder / f"{name}.log"), request=request, start=start)
    return _program(folder / name, code)


def peer_pythons() -> dict[str, str]:
    """Returns the interpreters that the environment names."""
    pairs = os.environ.get("QTOOL_PEER_PYTHONS", "").split(os.pathsep)
    return {name: python for name, _, python in (pair.partition("=") for pair in pairs) if python}


def _program(path: Path, code: str) -> str:
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)
    return str(path)
