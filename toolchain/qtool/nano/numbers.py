"""Small arithmetic and counting, with the steps that a person would write down."""

from __future__ import annotations

import random

from qtool.nano.unit import Unit, pick, question, vary

_ADD = (
    "What is {a} + {b}?", "{a} + {b} =", "What is {a} plus {b}?", "Add {a} and {b}.", "Calculate {a} + {b}.",
    "How much is {a} plus {b}?", "Sum of {a} and {b}?", "Tell me {a} + {b}.", "{a} plus {b}?",
)  # fmt: skip
_SUBTRACT = (
    "What is {a} - {b}?", "{a} - {b} =", "What is {a} minus {b}?", "Subtract {b} from {a}.",
    "Calculate {a} - {b}.",
    "How much is {a} minus {b}?", "Take {b} away from {a}.", "Tell me {a} - {b}.", "{a} minus {b}?",
)  # fmt: skip
_MULTIPLY = (
    "What is {a} x {b}?", "{a} x {b} =", "What is {a} times {b}?", "Multiply {a} by {b}.",
    "Calculate {a} x {b}.",
    "How much is {a} times {b}?", "Product of {a} and {b}?", "Tell me {a} x {b}.", "{a} times {b}?",
)  # fmt: skip
_THINGS = ("apples", "books", "coins", "eggs", "cards", "stones", "stamps", "pens", "cups", "shells")


def _add_steps(first: int, second: int) -> str:
    """Column addition: the ones, then the tens with the carry."""
    if first < 10 and second < 10:
        return f"{first} + {second} = {first + second}"
    ones = first % 10 + second % 10
    carry = ones // 10
    tens = first // 10 + second // 10 + carry
    return (
        f"ones: {first % 10} + {second % 10} = {ones}, write {ones % 10}, carry {carry}\n"
        f"tens: {first // 10} + {second // 10} + {carry} = {tens}"
    )


def _subtract_steps(first: int, second: int) -> str:
    """Column subtraction: the ones, borrowing if needed, then the tens."""
    if first < 10:
        return f"{first} - {second} = {first - second}"
    borrow = int(first % 10 < second % 10)
    top = first % 10 + 10 * borrow
    return (
        f"ones: {top} - {second % 10} = {top - second % 10}, borrow {borrow}\n"
        f"tens: {first // 10} - {second // 10} - {borrow} = {first // 10 - second // 10 - borrow}"
    )


def _operand(source: random.Random) -> int:
    """A number below 100; one digit a little more often than chance would have it."""
    return source.randrange(100) if source.random() < 0.85 else source.randrange(10)


def arithmetic(source: random.Random) -> Unit:
    """Add, subtract or multiply. Sums and differences are held out by their numbers, in every phrasing."""
    kind = source.random()
    if kind < 0.42:
        first, second = _operand(source), _operand(source)
        text = vary(source, pick(source, _ADD).format(a=first, b=second))
        answer, key = f"{first} + {second} = {first + second}.", _numbers_key(first, "+", second)
        return question("arithmetic", text, answer, _add_steps(first, second), key=key)
    if kind < 0.84:
        second, first = sorted((_operand(source), _operand(source)))
        text = vary(source, pick(source, _SUBTRACT).format(a=first, b=second))
        answer, key = f"{first} - {second} = {first - second}.", _numbers_key(first, "-", second)
        return question("arithmetic", text, answer, _subtract_steps(first, second), key=key)
    first, second = source.randrange(11), source.randrange(11)
    text = pick(source, _MULTIPLY).format(a=first, b=second)
    answer = f"{first} x {second} = {first * second}."
    steps = f"{first} x {second} is {second} times {first}, so {first * second}"
    # A times table cannot be derived from the rest of it, so products are held out by phrasing.
    return question("arithmetic", vary(source, text), answer, steps)


def word_problem(source: random.Random) -> Unit:
    """One sentence story about things gained or lost."""
    thing, gain = pick(source, _THINGS), source.random() < 0.5
    second, first = sorted((source.randrange(2, 50), source.randrange(2, 50)))
    if gain:
        verb = pick(source, ("buy", "find", "get", "win"))
        text = f"I have {first} {thing} and {verb} {second} more. How many {thing} do I have?"
        total, sign, steps = first + second, "+", _add_steps(first, second)
    else:
        verb = pick(source, ("lose", "sell", "give away", "use"))
        text = f"I have {first} {thing} and {verb} {second}. How many {thing} are left?"
        total, sign, steps = first - second, "-", _subtract_steps(first, second)
    answer = f"{first} {sign} {second} = {total}. You have {total} {thing}."
    return question("word problems", vary(source, text), answer, steps, key=_numbers_key(first, sign, second))


def _numbers_key(first: int, sign: str, second: int) -> str | None:
    """Hold out by the numbers, whatever the words; one-digit pairs are too few, so by phrasing."""
    if first < 10 and second < 10:
        return None
    low, high = sorted((first, second))
    return f"{low} + {high}" if sign == "+" else f"{first} - {second}"


def compare(source: random.Random) -> Unit:
    """Which of two different numbers is larger or smaller."""
    first, second = source.sample(range(100), 2)
    word = pick(source, ("larger", "smaller"))
    right, other = _ordered(first, second, word)
    text = pick(source, (
        "Which number is {w}, {a} or {b}?", "What is {w}: {a} or {b}?", "{a} or {b}, which is {w}?",
        "Tell me which is {w}, {a} or {b}.",
    )).format(w=word, a=first, b=second)  # fmt: skip
    return question(
        "compare", vary(source, text), f"{right} is {word} than {other}.", f"{first} and {second}: {right}"
    )


def _ordered(first: int, second: int, word: str) -> tuple[int, int]:
    """The number that the word asks for, then the other."""
    low, high = sorted((first, second))
    return (high, low) if word == "larger" else (low, high)


def counting(source: random.Random) -> Unit:
    """Count up or down, or in steps: long answers that are easy to check."""
    step = pick(source, (1, 1, 1, 2, 5, 10))
    length = source.randrange(4, 21)
    low = source.randrange(0, max(1, 100 - step * length))
    low -= low % step if step > 2 else 0
    values = list(range(low, low + step * length, step))
    if source.random() < 0.35:
        values.reverse()
    by = "" if step == 1 else f" by {step}"
    text = pick(source, (
        "Count from {a} to {b}{s}.", "Count{s} from {a} to {b}.", "List the numbers from {a} to {b}{s}.",
        "Please count from {a} to {b}{s}.", "Numbers from {a} to {b}{s}?",
    )).format(a=values[0], b=values[-1], s=by)  # fmt: skip
    direction = "up" if values[0] < values[-1] else "down"
    steps = f"Count {direction} by {step}, from {values[0]} to {values[-1]}."
    return question("counting", vary(source, text), ", ".join(map(str, values)) + ".", steps)
