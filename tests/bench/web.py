"""Speed of an artifact on a page in Chromium (WebAssembly), beside the Python runtime in the same run.

    python tests/bench/web.py ARTIFACT [--tokens 8] [--node-modules FOLDER]

ARTIFACT was built for `web-int4`. The same question goes to the page with one thread, to the page with all
threads (cross-origin isolated), and to the Python runtime with one thread. The last line is JSON; rates are
tokens per second.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import qtool_runtime
from qtool.web.page import package_web
from support.browser import Page, find_chromium, open_browser
from support.web_server import ISOLATED, serve

MESSAGES = [{"role": "user", "content": "Write a Python function that reverses a string, and explain it."}]
ASK = """(async () => {
  const { loadInWorker } = await import('./qtool/client.js');
  const started = performance.now();
  window.model ??= await loadInWorker('model/', { provider: 'wasm' });
  const loaded = (performance.now() - started) / 1000;
  const answer = window.model.chat(%s, { temperature: 0, maxTokens: %d });
  for (;;) {
    const { done, value } = await answer.next();
    if (done) return { ...value, threads: window.model.threads, loadSeconds: loaded };
  }
})()"""


def ask_page(page: Page, tokens: int) -> dict[str, Any]:
    """Returns what an answer took on the page; the first one loads the model."""
    return dict(page.evaluate(ASK % (json.dumps(MESSAGES), tokens)))


def rates(stats: dict[str, Any]) -> dict[str, float]:
    """Returns threads, seconds to load, and tokens per second of the prompt and the answer."""
    read = stats["promptTokens"] - stats["cachedTokens"]
    return {
        "threads": stats["threads"],
        "load_seconds": round(stats["loadSeconds"], 2),
        "prompt_rate": round(read / stats["firstTokenSeconds"], 2),
        "decode_rate": round(stats["decodeRate"], 2),
    }


def python_rates(artifact: Path, tokens: int) -> dict[str, float]:
    """The same with the Python runtime and one thread."""
    with qtool_runtime.load(artifact, provider="cpu", threads=1) as model:
        stream = model.chat(MESSAGES, temperature=0, max_tokens=tokens)
        stream.read()
        return {
            "threads": 1,
            "prompt_rate": round(stream.stats.prefill_rate, 2),
            "decode_rate": round(stream.stats.decode_rate, 2),
        }


def main() -> None:
    """Measures, and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--node-modules", type=Path)
    options = parser.parse_args()
    chromium = find_chromium()
    assert chromium, "no Chromium"
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "page"
        package_web(options.artifact, folder, node_modules=options.node_modules)
        for name, headers in (("page", {}), ("isolated page", ISOLATED)):
            with serve(folder, headers=headers) as root, open_browser(chromium) as page:
                page.open(root)
                results[name] = rates(ask_page(page, options.tokens))
                print(name, results[name], file=sys.stderr)
    results["python"] = python_rates(options.artifact, options.tokens)
    results["decode_ratio"] = round(results["page"]["decode_rate"] / results["python"]["decode_rate"], 4)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
