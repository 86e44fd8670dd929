"""Tasks that repeat a list, a text or a code: longer answers whose every token stands in the prompt."""

from __future__ import annotations

import random

from qtool.nano.unit import Unit, pick, question

WORDS = (
    "apple", "river", "stone", "cloud", "table", "window", "garden", "paper", "candle", "bottle",
    "mirror", "basket", "hammer", "ladder", "button", "carpet", "kettle", "pencil", "pillow", "blanket",
    "engine", "ticket", "letter", "orange", "silver", "copper", "forest", "desert", "island", "valley",
    "meadow", "castle", "bridge", "tunnel", "harbor", "market", "school", "office", "museum", "bakery",
    "tiger", "rabbit", "turtle", "falcon", "salmon", "beetle", "spider", "monkey", "donkey", "camel",
    "summer", "winter", "spring", "autumn", "morning", "evening", "thunder", "rainbow", "shadow", "flame",
    "butter", "cheese", "pepper", "ginger", "honey", "sugar", "carrot", "onion", "potato", "cherry",
    "lemon", "peach", "melon", "violin", "trumpet", "guitar", "drum", "piano", "rocket", "planet",
    "comet", "galaxy", "magnet", "crystal", "needle", "thread", "ribbon", "feather", "jacket", "helmet",
    "wallet", "anchor", "compass", "lantern", "shovel", "bucket", "saddle", "wagon", "canoe", "kite",
    "marble", "puzzle",
)  # fmt: skip
_ADJECTIVES = (
    "old", "young", "small", "brave", "quiet", "clever", "hungry", "lazy", "happy", "tired", "green", "tall",
)  # fmt: skip
_ANIMALS = ("fox", "owl", "bear", "cat", "dog", "horse", "goose", "mouse", "wolf", "hen", "frog", "crow")
_VERBS = ("sleeps", "waits", "sings", "hides", "sits", "jumps", "works", "rests", "dances", "looks")
_PLACES = ("under", "behind", "near", "in front of", "next to", "on top of")


def _sentence(source: random.Random) -> str:
    """One sentence of the closed world: an animal does something somewhere."""
    place = f"{pick(source, _PLACES)} the {pick(source, WORDS)}"
    return f"The {pick(source, _ADJECTIVES)} {pick(source, _ANIMALS)} {pick(source, _VERBS)} {place}."


def _code(source: random.Random) -> str:
    """A short code such as ``KX-4921``."""
    letters = "".join(pick(source, "ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(2))
    return f"{letters}-{source.randrange(100, 10000)}"


def copying(source: random.Random) -> Unit:
    """Repeat what follows the colon, exactly."""
    kind = source.random()
    if kind < 0.45:
        body = ", ".join(source.sample(WORDS, source.randrange(3, 17)))
        what = "list"
    elif kind < 0.8:
        body = " ".join(_sentence(source) for _ in range(source.randrange(1, 6)))
        what = pick(source, ("text", "story", "text"))
    elif kind < 0.9:
        body = "\n".join(f"- {word}" for word in source.sample(WORDS, source.randrange(3, 13)))
        what = "list"
    else:
        body = ", ".join(_code(source) for _ in range(source.randrange(1, 5)))
        what = "code"
    text = pick(source, (
        "Repeat this {w}:{s}{b}", "Repeat the {w} back to me:{s}{b}", "Copy this {w}:{s}{b}",
        "Say this {w} again:{s}{b}", "Please repeat this {w} exactly:{s}{b}", "Write the same {w}:{s}{b}",
    )).format(w=what, s=pick(source, (" ", "\n")) if "\n" not in body else "\n", b=body)  # fmt: skip
    return question("copying", text, body, f"Copy the {what} without changes.")
