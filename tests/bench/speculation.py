"""Decode rate with prompt-lookup drafts against without, on edits, summaries and free text.

    python tests/bench/speculation.py ARTIFACT [--threads N] [--rounds N] [--tokens N] [--kernels off]
        [--exact-drafts]

Each prompt is answered in turn without drafts and with them; compared are the decode rates of the two
answers of a round. Edits and summaries are greedy; free text is drawn at temperature 0.8 with a seed, for a
small model's greedy text repeats itself, which is what drafts are good at. Also printed: how many draft
tokens were read and how many were right, and after how many tokens a greedy answer with drafts is another
one than without (by rounding, see `qtool_runtime/speculation.py`)."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from measure import argument_parser, finish, say

import qtool_runtime
from qtool_runtime import Model, TextStream

ROOT = Path(__file__).resolve().parents[2]
FREE = {"temperature": 0.8, "top_p": 0.95, "seed": 7}


def tasks() -> dict[str, dict[str, Any]]:
    """Prompts by name, with the options of their answers."""
    code = (ROOT / "runtime/qtool_runtime/threads.py").read_text()
    other = (ROOT / "runtime/qtool_runtime/prompt.py").read_text()
    readme = (ROOT / "README.md").read_text()
    sources = readme[readme.index("## Sources") : readme.index("## The artifact")]
    artifact = readme[readme.index("## The artifact") : readme.index("## Figures")]
    edit = "Print this file again with {} and leave everything else as it is:\n```python\n{}\n```"
    return {
        "edit 1": {"prompt": edit.format("default_threads renamed to count_threads", code[:2200])},
        "edit 2": {"prompt": edit.format("every self._lock renamed to self._guard", other[:2200])},
        "summary 1": {"prompt": f"Summarize this text in five sentences, in its own words:\n{sources}"},
        "summary 2": {"prompt": f"Summarize this text in five sentences, in its own words:\n{artifact}"},
        "free 1": {"prompt": "Write a story about a lighthouse keeper who finds a bottle.", **FREE},
        "free 2": {"prompt": "Explain how rain forms, to a child, in a playful way.", **FREE},
        "free 3": {"prompt": "Describe a market in the morning: sounds, colours, people.", **FREE},
    }


def main() -> None:
    """Measures one artifact."""
    parser = argument_parser(__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--exact-drafts", action="store_true")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    loading = {name: getattr(options, name) for name in ("threads", "kernels", "exact_drafts")}
    with qtool_runtime.load(options.artifact, prefix_memory=0, **loading) as model:
        for name, task in tasks().items():
            report[name] = measure(model, dict(task), options.rounds, options.tokens)
            say(f"{name}: {report[name]}")
    finish(report)


def measure(model: Model, task: dict[str, Any], rounds: int, tokens: int) -> dict[str, Any]:
    """Returns the ratios of one prompt."""
    ratios = []
    for number in range(rounds):
        streams: dict[bool, TextStream] = {}
        for speculate in (False, True) if number % 2 else (True, False):
            streams[speculate] = answer(model, task, tokens, speculate)
        plain, drafted = streams[False], streams[True]
        ratios.append(drafted.stats.decode_rate / plain.stats.decode_rate)
    same = zip(plain.token_ids, drafted.token_ids, strict=False)
    return {
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "tokens": len(drafted.token_ids),
        "drafted": drafted.stats.drafted_tokens,
        "accepted": drafted.stats.accepted_tokens,
        "same_tokens": next((place for place, (one, two) in enumerate(same) if one != two), "all"),
    }


def answer(model: Model, task: dict[str, Any], tokens: int, speculate: bool) -> TextStream:
    """Runs one answer to its end."""
    options = {"temperature": 0, "repetition_penalty": 1.0, **task}
    messages = [{"role": "user", "content": options.pop("prompt")}]
    stream = model.chat(messages, max_tokens=tokens, ignore_eos=True, speculate=speculate, **options)
    stream.read()
    return stream


if __name__ == "__main__":
    main()
