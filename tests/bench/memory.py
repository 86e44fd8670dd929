"""The memory that the runtime takes, beside what `qtool build --plan` predicts for as many tokens.

    python tests/bench/memory.py ARTIFACT [--tokens N] [--engine genai]

Loads the artifact, fills its KV cache with N tokens, and reads VmRSS and VmHWM from /proc (Linux only).
The last line on standard output is JSON; all sizes are in bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import qtool_runtime


def memory() -> dict[str, int]:
    """Returns resident and peak memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Vm")}
    return {"resident": sizes["VmRSS"], "peak": sizes["VmHWM"]}


def main() -> None:
    """Measures one artifact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--engine", default="onnxruntime")
    options = parser.parse_args()
    with qtool_runtime.load(options.artifact, engine=options.engine, prefix_memory=0) as model:
        loaded, manifest = memory(), model.manifest
        prompt = np.arange(options.tokens - 1) % manifest.model.vocab_size
        model.generate(prompt, max_tokens=1, ignore_eos=True).read()
        filled, plan = memory(), manifest.memory
    # The plan is for the whole context; its KV cache is the only part that depends on the tokens by much.
    planned = (
        plan.peak - plan.kv_cache - plan.prefix_memory + options.tokens * manifest.kv_cache.bytes_per_token
    )
    print(json.dumps({"loaded": loaded, "filled": filled, "planned_peak": planned, "tokens": options.tokens}))


if __name__ == "__main__":
    main()
