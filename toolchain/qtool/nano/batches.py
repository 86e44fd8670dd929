"""Turns examples into padded batches of token ids and says which tokens the loss counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from tokenizers import Tokenizer

from qtool.nano.corpus import Example, train_examples
from qtool.nano.template import render

LONGEST = 640
"""Training examples with more tokens than this are left out."""

_POOL = 2048


@dataclass(frozen=True)
class Row:
    """One example as token ids. ``counted[i]`` says whether predicting token ``i`` is part of the loss."""

    ids: list[int]
    counted: list[bool]
    prompt_length: int


@dataclass(frozen=True)
class Batch:
    """Rows of one length class, padded to ``width`` tokens."""

    rows: list[Row]
    width: int


class Encoder:
    """Encodes examples; knows the ids that mark the turns."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        (self.start,) = self.encode("<|im_start|>")
        (self.end,) = self.encode("<|im_end|>")
        self.assistant = self.encode("assistant\n")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def row(self, example: Example) -> Row:
        """Encode an example. The loss counts the answer and, but for their first token, earlier answers.

        The first token of an earlier answer is left out because there the think block is gone: counting it
        would teach the model to skip thinking.
        """
        prompt = self.encode(render(example.messages, thinking=example.thinking, tools=example.tools))
        answer = [*self.encode(example.completion), self.end]
        counted = self._earlier_answers(prompt) + [True] * len(answer)
        return Row(prompt + answer, counted, len(prompt))

    def _earlier_answers(self, prompt: list[int]) -> list[bool]:
        """Mark the assistant turns inside a prompt; its open last turn has no end and stays unmarked."""
        counted = [False] * len(prompt)
        opening = [self.start, *self.assistant]
        for place in range(len(prompt)):
            if prompt[place : place + len(opening)] != opening or self.end not in prompt[place:]:
                continue
            first = place + len(opening) + 1
            last = prompt.index(self.end, place)
            counted[first : last + 1] = [True] * (last + 1 - first)
        return counted


def batches(encoder: Encoder, seed: int, tokens: int, *, practice: bool = False) -> Iterator[Batch]:
    """Endless training batches of at most ``tokens`` padded tokens each.

    Rows of like length go together, so that little is padding; the batches of a pool are then shuffled by
    a fixed rule to keep short and long ones mixed.
    """
    examples = train_examples(seed, 10**9, practice=practice)
    while True:
        pool = [encoder.row(example) for example in islice(examples, _POOL)]
        pool = sorted((row for row in pool if len(row.ids) <= LONGEST), key=lambda row: len(row.ids))
        ready = list(_cut(pool, tokens))
        for offset in range(7):
            yield from ready[offset::7]


def _cut(pool: list[Row], tokens: int) -> Iterator[Batch]:
    """Cut a sorted pool into batches; widths are multiples of 16 to keep the number of shapes small."""
    rows: list[Row] = []
    for row in pool:
        width = -(-len(row.ids) // 16) * 16
        if rows and width * (len(rows) + 1) > tokens:
            yield Batch(rows, -(-len(rows[-1].ids) // 16) * 16)
            rows = []
        rows.append(row)
    if rows:
        yield Batch(rows, -(-len(rows[-1].ids) // 16) * 16)
