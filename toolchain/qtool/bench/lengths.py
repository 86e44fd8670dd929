"""What is measured: prompts of several lengths, and decoding with several lengths of text in the cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qtool.errors import ContextLimitError, GenerationError

TURN = 16
"""Tokens that an engine generates before it is the next one's turn."""

ROUNDS = 3
"""How often every engine is started and measured, unless asked otherwise."""


@dataclass(frozen=True)
class Lengths:
    """Counts of tokens.

    Attributes:
        prompts: lengths of prompts whose reading is measured.
        depths: how many tokens are in the cache when decoding starts, less those that the first step adds.
            0 stands for the shortest prompt there is, of one token.
        tokens: tokens generated at each depth, after the first.

    Raises:
        GenerationError: a count is out of its range, or there is nothing to measure.
    """

    prompts: tuple[int, ...] = (128, 512)
    depths: tuple[int, ...] = (0, 512, 1024)
    tokens: int = 64

    def __post_init__(self) -> None:
        for name, values, least in (
            ("prompts", self.prompts, 1),
            ("depths", self.depths, 0),
            ("tokens", (self.tokens,), 1),
        ):
            for value in values:
                if value < least:
                    raise GenerationError(f"{name} has {value}; valid: counts from {least}")
        if not self.prompts and not self.depths:
            raise GenerationError("there is nothing to measure; valid: at least one prompt or depth")

    def clipped(self, context: int) -> Lengths:
        """Returns the lengths that a context has room for: longer ones become the longest possible.

        Raises:
            ContextLimitError: not even the shortest prompt and the tokens after it fit.
        """
        room = context - self.tokens - 1 if self.depths else context - 1
        if room < 1:
            most = context - 2
            raise ContextLimitError(
                f"a context of {context} tokens has no room for a prompt and {self.tokens} tokens more",
                hint=f"Ask for at most {most}: --tokens {most}"
                if most > 0
                else "Build the artifact with a longer context.",
            )
        return Lengths(
            prompts=_distinct(min(length, context - 1) for length in self.prompts),
            depths=_distinct(min(depth, room) for depth in self.depths),
            tokens=self.tokens,
        )

    @property
    def readings(self) -> tuple[int, ...]:
        """Lengths of all prompts that are read, the shortest first: for their own sake or to decode after."""
        return _distinct((*self.prompts, *map(prompt_of, self.depths)))

    @property
    def capacity(self) -> int:
        """Tokens of the longest prompt and answer together."""
        after = {prompt_of(depth): self.tokens for depth in self.depths}
        return max(length + 1 + after.get(length, 0) for length in self.readings)

    @property
    def turns(self) -> tuple[int, ...]:
        """Tokens of each turn: about `TURN`, and `tokens` together."""
        count = max(1, round(self.tokens / TURN))
        each, over = divmod(self.tokens, count)
        return tuple(each + (turn < over) for turn in range(count))


def prompt_of(depth: int) -> int:
    """Returns the length of the prompt that makes a depth."""
    return max(depth, 1)


def _distinct(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(values)))
