"""Trains nano's tokenizer: byte-level BPE with the pre-tokenizer of the Qwen models, and few merges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from qtool.nano.corpus import Example
from qtool.nano.template import render

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKUP_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Whole tokens that a decoder still prints, so that callers can read them."""

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The published pattern of the Qwen2 and Qwen3 tokenizers: digits one by one, words with their space."""


def full_text(example: Example) -> str:
    """Prompt and completion as one text, as the model sees them in training."""
    prompt = render(example.messages, thinking=example.thinking, tools=example.tools)
    return prompt + example.completion + "<|im_end|>\n"


def _plain_texts(examples: Iterable[Example]) -> Iterator[str]:
    """The texts without markup; added tokens must not take part in the merges."""
    for example in examples:
        text = full_text(example)
        for token in SPECIAL_TOKENS + MARKUP_TOKENS:
            text = text.replace(token, "\n")
        yield text


def train_tokenizer(examples: Iterable[Example], vocab_size: int) -> Tokenizer:
    """Learn the merges from the examples.

    Args:
        examples: Training examples, read once.
        vocab_size: Number of tokens in the end, the added ones included.

    Returns:
        A tokenizer whose added tokens have the last ids, as in Qwen checkpoints.

    Raises:
        ValueError: The text has too few different words for that many tokens.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = NFC()
    splits = [
        Split(Regex(SPLIT_PATTERN), behavior="isolated"),
        ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = Sequence(splits)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(MARKUP_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_plain_texts(examples), trainer=trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in MARKUP_TOKENS])
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} tokens, {vocab_size} were asked for")
    return tokenizer
