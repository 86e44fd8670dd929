"""What structured output costs a token, and what it gives: masks, decode rate, calls that parse.

    python tests/bench/structured.py ARTIFACT [--rounds 5]

ARTIFACT is of a model with the vocabulary of Qwen2.5. The last line is JSON:

- "mask": milliseconds of processor time (so without what other work on the machine takes) of each step for
  the tokens of three documents under a schema with nested objects, arrays, an enumeration, formats, numbers
  and strings: following the grammar ("take"), applying the mask to 151,936 logits ("mask"), both ("sum"),
  and both with a greedy choice ("choice").
- "prepare": seconds and bytes of the first constraint of a model, milliseconds of a further one.
- "decode": tokens/s of an answer with the schema over those of the same number of tokens without, round by
  round in one process, greedy. Tokens that have to follow are chosen one at a time, as all others.
- "calls": how many of several requests for a tool came back as calls that parse and match, by tool choice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import argument_parser, finish, memory_status, paired_ratio, say

from qtool_runtime import Model, load
from qtool_runtime.grammar import answer_grammar
from qtool_runtime.sampling import Sampler, SamplingOptions


def closed(**properties: Any) -> dict[str, Any]:
    """An object with exactly these properties."""
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


ITEM = closed(sku={"type": "string"}, quantity={"type": "integer"}, price={"type": "number"})
SCHEMA = closed(
    id={"type": "integer", "minimum": 1, "maximum": 99999},
    name={"type": "string", "minLength": 1, "maxLength": 40},
    email={"type": "string", "format": "email"},
    created={"type": "string", "format": "date-time"},
    status={"enum": ["active", "suspended", "deleted"]},
    score={"type": "number"},
    address=closed(
        street={"type": "string"},
        city={"type": "string"},
        zip={"type": "string", "pattern": "^[0-9]{5}$"},
        country={"anyOf": [{"type": "string"}, {"type": "null"}]},
    ),
    tags={"type": "array", "items": {"type": "string"}, "maxItems": 5},
    items={"type": "array", "items": ITEM, "minItems": 1, "maxItems": 10},
    active={"type": "boolean"},
)
DOCUMENT = {
    "id": 1234,
    "name": "Ada Lovelace",
    "email": "ada@example.org",
    "created": "2026-01-31T12:30:00Z",
    "status": "active",
    "score": 4.75,
    "address": {"street": "12 Main Street, flat “3”", "city": "München", "zip": "12345", "country": None},
    "tags": ["mathematics", "analytical engine"],
    "items": [
        {"sku": "AB-1, a description that goes on for a while", "quantity": 3, "price": 9.99},
        {"sku": "C2", "quantity": 1, "price": 120.5},
    ],
    "active": True,
}
QUESTION = [
    {"role": "user", "content": f"Return this customer as JSON: {json.dumps(DOCUMENT, ensure_ascii=False)}"}
]

WEATHER = closed(city={"type": "string"}, unit={"enum": ["celsius", "fahrenheit"]})
TIMER = closed(minutes={"type": "integer", "minimum": 1, "maximum": 240})
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "set_timer", "parameters": TIMER}},
]
REQUESTS = [
    "What is the weather in Paris?",
    "Wake me in twenty minutes.",
    "Do I need a coat in Oslo?",
    "Set a timer for an hour and a half.",
    "How warm is it in Rome, in fahrenheit?",
    "Remind me of the oven in 12 minutes.",
]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum, in milliseconds."""
    median, tail = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return {"median": float(median), "p99": float(tail), "maximum": max(seconds) * 1e3}


def measure_masks(model: Model, rounds: int) -> dict[str, Any]:
    """Times every step over the documents, each round with a fresh matcher."""
    rules = answer_grammar(SCHEMA)
    assert rules is not None
    endings = model.manifest.generation.eos_token_ids
    size = model.manifest.model.vocab_size
    logits = np.random.default_rng(0).normal(0, 3, size).astype(np.float32)
    texts = [json.dumps(DOCUMENT, ensure_ascii=False, indent=indent) for indent in (None, 1, 4)]
    documents = [model.tokenizer.encode_exact(text) for text in texts]
    times: dict[str, list[float]] = {"take": [], "mask": [], "sum": [], "choice": []}
    for _ in range(rounds):
        for tokens in documents:
            constraint = model._grammars.compile(rules, endings)
            sampler = Sampler(SamplingOptions(), constraint=constraint)
            for token in tokens:
                started = time.thread_time()
                constraint.mask(logits)
                masked = time.thread_time()
                sampler.adjust(logits).argmax()
                chosen = time.thread_time()
                constraint.take(token)
                taken = time.thread_time()
                times["mask"].append(masked - started)
                times["take"].append(taken - chosen)
                times["sum"].append(masked - started + taken - chosen)
                times["choice"].append(taken - masked)
            assert constraint.complete
    tokens = sum(map(len, documents))
    return {"tokens": tokens, **{name: spread(values) for name, values in times.items()}}


def measure_preparation(model: Model) -> dict[str, float]:
    """Times the first constraint of a model, and further ones."""
    rules = answer_grammar(SCHEMA)
    assert rules is not None
    before = memory_status()["resident"]
    started = time.perf_counter()
    model._grammars.compile(rules, ())
    first = time.perf_counter() - started
    held = memory_status()["resident"] - before
    further = []
    for _ in range(20):
        started = time.perf_counter()
        model._grammars.compile(rules, ())
        further.append(time.perf_counter() - started)
    return {"seconds": first, "bytes": held, "further_milliseconds": float(np.median(further)) * 1e3}


def measure_decoding(model: Model, rounds: int) -> dict[str, Any]:
    """Decode rate with the schema over that without, at the same number of tokens."""
    rates: dict[str, list[float]] = {"with": [], "without": []}
    count = 0
    for _ in range(rounds):
        stream = model.chat(QUESTION, json_schema=SCHEMA, temperature=0, max_tokens=400)
        json.loads(stream.read())
        assert stream.stop_reason == "eos", stream.stop_reason
        count = len(stream.token_ids)
        free = model.chat(QUESTION, temperature=0, max_tokens=count, ignore_eos=True)
        free.read()
        rates["with"].append(stream.stats.decode_rate)
        rates["without"].append(free.stats.decode_rate)
    return {"tokens": count, "ratio": paired_ratio(rates["with"], rates["without"])}


def count_calls(model: Model) -> dict[str, int]:
    """How many requests came back as exactly one call that parses and has the asked-for arguments' names."""
    good: dict[str, int] = {}
    for choice in ("auto", "required"):
        good[choice] = 0
        for text in REQUESTS:
            messages = [{"role": "user", "content": text}]
            stream = model.chat(messages, tools=TOOLS, tool_choice=choice, temperature=0, max_tokens=120)
            stream.read()
            known = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
            good[choice] += bool(stream.tool_calls) and all(
                call.name in known and call.arguments.keys() == known[call.name]["properties"].keys()
                for call in stream.tool_calls
            )
    return {"of": len(REQUESTS), **good}


def main() -> None:
    """Prints a line for each part, then JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    with load(arguments.artifact, prefix_memory=0) as model:
        report["prepare"] = measure_preparation(model)
        say(f"prepare: {report['prepare']}")
        report["mask"] = measure_masks(model, arguments.rounds)
        say(f"mask, ms: {report['mask']}")
        report["decode"] = measure_decoding(model, arguments.rounds)
        say(f"decode rate with a schema over without: {report['decode']}")
        report["calls"] = count_calls(model)
        say(f"calls: {report['calls']}")
    finish(report)


if __name__ == "__main__":
    main()
