"""Trains nano from nothing: ``python -m qtool.nano.train --output FOLDER``.

Needs torch, which qtool itself never does, and about an hour on two busy processor cores. The text is made
by `qtool.nano.corpus`; nothing is downloaded. The last line on standard output is JSON with the figures.
"""

# torch is not installed where the type checker usually runs.
# mypy: warn-unused-ignores=False, disallow-untyped-decorators=False

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch  # type: ignore[import-not-found,unused-ignore]
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional  # type: ignore[import-not-found,unused-ignore]

from qtool.nano.batches import Batch, Encoder, Row, batches
from qtool.nano.corpus import Example, held_out, train_examples
from qtool.nano.export import round_to_bfloat16, save_checkpoint
from qtool.nano.network import Qwen3, Shape
from qtool.nano.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Phase:
    """One pass of training with its own warm-up and cosine; it starts with fresh optimizers.

    Attributes:
        steps: Number of batches.
        learning_rate: The highest one, reached after the warm-up.
        practice: Whether to draw more of what is learned last.
        quantized_share: In this last share of the steps every other one runs on 4-bit weights.
    """

    steps: int
    learning_rate: float
    practice: bool
    quantized_share: float


@dataclass(frozen=True)
class Plan:
    """How to train. The defaults made the shipped checkpoint."""

    seed: int = 1
    phases: tuple[Phase, ...] = (
        Phase(steps=2500, learning_rate=3e-3, practice=False, quantized_share=0.35),
        Phase(steps=1000, learning_rate=1.5e-3, practice=True, quantized_share=0.6),
    )
    tokens_per_step: int = 4096
    warmup_steps: int = 100
    weight_decay: float = 0.05
    tokenizer_examples: int = 20_000
    threads: int = 2


def log(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def fake_int4(weight: torch.Tensor, group: int = 32) -> torch.Tensor:
    """Round a matrix (N, K) to 4 bits, groups of ``group`` along K, and back.

    The grid is the plain symmetric one: the largest value of a group, with its sign, becomes -8.
    """
    groups = weight.reshape(-1, group)
    largest = groups.gather(1, groups.abs().argmax(dim=1, keepdim=True))
    scale = largest / -8
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return ((groups / scale).round().clamp(-8, 7) * scale).reshape(weight.shape)


@contextmanager
def quantized(network: Qwen3) -> Iterator[None]:
    """Inside, every matrix holds its 4-bit values; the exact ones come back at the end.

    Gradients taken inside go to the exact weights (the straight-through rule of quantization-aware training).
    """
    matrices = [parameter for parameter in network.parameters() if parameter.dim() == 2]
    exact = [matrix.data.clone() for matrix in matrices]
    for matrix in matrices:
        matrix.data.copy_(fake_int4(matrix.data))
    try:
        yield
    finally:
        for matrix, values in zip(matrices, exact, strict=True):
            matrix.data.copy_(values)


def to_tensors(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) and which of them the loss counts (B, T), both padded at the end."""
    ids = torch.zeros(len(batch.rows), batch.width, dtype=torch.long)
    counted = torch.zeros(len(batch.rows), batch.width, dtype=torch.bool)
    for place, row in enumerate(batch.rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        counted[place, : len(row.ids)] = torch.tensor(row.counted)
    return ids, counted


def learning_rate(plan: Plan, phase: Phase, step: int) -> float:
    """Linear warm-up, then a cosine down to nothing."""
    if step < plan.warmup_steps:
        return phase.learning_rate * (step + 1) / plan.warmup_steps
    share = (step - plan.warmup_steps) / max(1, phase.steps - plan.warmup_steps)
    return phase.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def optimizers_for(network: Qwen3, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms, which do not decay.

    Muon makes the steps of a matrix orthogonal. It is here because others report that it needs fewer tokens
    than AdamW alone, and processor time is scarce here; the two were not compared on this corpus.
    Both get their learning rate from the phase at every step.
    """
    inner = [value for name, value in network.named_parameters() if value.dim() == 2 and "embed" not in name]
    norms = [value for value in network.parameters() if value.dim() != 2]
    embedding = {"params": [network.model.embed_tokens.weight], "weight_decay": plan.weight_decay}
    rest = [embedding, {"params": norms, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(inner, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), fused=True),
    ]


def loss_of(network: Qwen3, batch: Batch) -> torch.Tensor:
    """Mean cross entropy over the counted tokens; logits are made for those only."""
    ids, counted = to_tensors(batch)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = network.hidden_states(ids[:, :-1])
        logits = network.logits(hidden[counted[:, 1:]])
    return functional.cross_entropy(logits.float(), ids[:, 1:][counted[:, 1:]])


def train(network: Qwen3, encoder: Encoder, plan: Plan, number: int) -> int:
    """Run phase ``number`` of the plan; returns the number of tokens seen (without padding)."""
    phase = plan.phases[number]
    optimizers = optimizers_for(network, plan)
    checks = [encoder.row(example) for example in held_out(190)]
    seen, started, recent = 0, time.monotonic(), 0.0
    # A phase draws other examples than the one before it.
    source = batches(encoder, plan.seed + 1000 * number, plan.tokens_per_step, practice=phase.practice)
    for step, batch in enumerate(islice(source, phase.steps)):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(plan, phase, step)
        rounded = step > phase.steps * (1 - phase.quantized_share) and step % 2 == 1
        loss = _step(network, batch, rounded)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        network.zero_grad()
        seen += sum(len(row.ids) for row in batch.rows)
        recent = loss if step == 0 else 0.98 * recent + 0.02 * loss
        if step % 100 == 99:
            speed = seen / (time.monotonic() - started)
            log(f"step {step + 1}  loss {recent:.4f}  {seen / 1e6:.1f} M tokens  {speed:.0f} tokens/s")
        if step % 500 == 499:
            log(f"  exact on held-out: {sum(exact_rows(network, checks)) / len(checks):.3f}")
    return seen


def _step(network: Qwen3, batch: Batch, rounded: bool) -> float:
    """Forward and backward pass, on 4-bit weights if ``rounded``. Returns the loss."""
    if not rounded:
        loss = loss_of(network, batch)
        loss.backward()
        return float(loss.detach())
    with quantized(network):
        return _step(network, batch, rounded=False)


@torch.no_grad()
def exact_rows(network: Qwen3, rows: Sequence[Row]) -> list[bool]:
    """Whether greedy decoding gives each row's expected completion, token by token.

    Greedy decoding writes exactly the expected text if and only if every expected token is the most likely
    one after the expected tokens before it: so one pass over the expected text decides it. With thinking on
    this is strict, because reasoning that differs counts as wrong even when the answer is right.
    """
    results = [False] * len(rows)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
    for start in range(0, len(order), 32):
        chosen = order[start : start + 32]
        picked = [rows[place] for place in chosen]
        ids, _ = to_tensors(Batch(picked, max(len(row.ids) for row in picked)))
        guesses = network.logits(network.hidden_states(ids[:, :-1])).argmax(dim=-1)
        for line, (place, row) in enumerate(zip(chosen, picked, strict=True)):
            span = slice(row.prompt_length - 1, len(row.ids) - 1)
            results[place] = bool((guesses[line, span] == ids[line, 1:][span]).all())
    return results


def accuracy_table(network: Qwen3, encoder: Encoder, examples: Sequence[Example]) -> dict[str, float]:
    """Share of exact completions: overall, by thinking mode and by category."""
    exact = exact_rows(network, [encoder.row(example) for example in examples])
    groups: dict[str, list[bool]] = {}
    for example, right in zip(examples, exact, strict=True):
        mode = "thinking on" if example.thinking else "thinking off"
        for name in ("all", mode, example.category):
            groups.setdefault(name, []).append(right)
    return {name: round(sum(rights) / len(rights), 4) for name, rights in groups.items()}


def report(network: Qwen3, encoder: Encoder, count: int) -> dict[str, dict[str, float]]:
    """Accuracy on ``count`` held-out examples, with the shipped weights and with 4-bit ones."""
    examples = held_out(count)
    table = {"bfloat16 weights": accuracy_table(network, encoder, examples)}
    with quantized(network):
        table["4-bit weights"] = accuracy_table(network, encoder, examples)
    return table


def prepare(plan: Plan, start: Path | None) -> tuple[Qwen3, Encoder]:
    """A new network and tokenizer, or those of a checkpoint that a phase left."""
    network = Qwen3(Shape())
    if start is None:
        examples = train_examples(plan.seed, plan.tokenizer_examples)
        return network, Encoder(train_tokenizer(examples, network.shape.vocab_size))
    weights = load_file(start / "model.safetensors")
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    return network, Encoder(Tokenizer.from_file(str(start / "tokenizer.json")))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=Plan.threads)
    parser.add_argument("--start", type=Path, help="a checkpoint that a phase left: go on from there")
    parser.add_argument("--phase", type=int, default=1, help="with --start: the phase to go on with, from 1")
    chosen = parser.parse_args(arguments)
    plan = Plan(seed=chosen.seed, threads=chosen.threads)
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    started, seen = time.monotonic(), 0
    network, encoder = prepare(plan, chosen.start)
    for number in range(chosen.phase - 1, len(plan.phases)):
        seen += train(network, encoder, plan, number)
        # Each phase ends with what a checkpoint can hold, so that starting from one changes nothing.
        round_to_bfloat16(network)
        save_checkpoint(network, encoder.tokenizer, chosen.output / f"phase-{number + 1}")
    save_checkpoint(network, encoder.tokenizer, chosen.output)
    minutes = round((time.monotonic() - started) / 60, 1)
    figures = {"seed": plan.seed, "tokens": seen, "minutes": minutes, "threads": plan.threads}
    print(json.dumps(figures | {"accuracy": report(network, encoder, 1900)}))


if __name__ == "__main__":
    main()
