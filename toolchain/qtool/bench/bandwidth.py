"""How fast this machine reads memory: the limit of decoding, which reads every weight for every token.

As many threads as the engines have each compute dot products of a long vector with itself: one stream of
reads, no writes, far beyond any cache. It runs in a process of its own, because numpy's matrix library takes
its thread count (one for each of our threads) from the environment when it is imported, and because the
vectors must not stay in memory beside the engines.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from qtool.errors import EngineError

TOTAL_BYTES = 512_000_000
MOST_BYTES_PER_THREAD = 256_000_000
PASSES = 3
"""The best counts: only what disturbs a pass makes it different."""

SINGLE_THREAD = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def read_bandwidth(threads: int) -> float:
    """Measures the read bandwidth of so many threads, in bytes per second.

    Raises:
        EngineError: the measurement failed.
    """
    command = [sys.executable, __file__, str(threads)]
    environment = {**os.environ, **dict.fromkeys(SINGLE_THREAD, "1"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"the read bandwidth cannot be measured:\n{done.stderr.strip()[-500:]}")
    return float(done.stdout)


def measure(threads: int) -> float:
    """Measures in this process; numpy must not have been imported with more than one thread."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    size = min(TOTAL_BYTES // threads, MOST_BYTES_PER_THREAD) // 4
    vectors = [np.ones(size, np.float32) for _ in range(threads)]
    total = sum(vector.nbytes for vector in vectors)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            begin = time.perf_counter()
            list(pool.map(lambda vector: np.dot(vector, vector), vectors))
            best = max(best, total / (time.perf_counter() - begin))
    return best


if __name__ == "__main__":
    print(measure(int(sys.argv[1])))
