"""Structured output: only tokens are chosen with which the answer can still become what was asked for.

llguidance follows a grammar byte by byte (an Earley parser over a lexer of regular-expression derivatives)
and says after each token which tokens can be next. Here that is applied to logits, and joined with what the
generation loop has to know: when the answer may end, when it must, and what has to follow.

Nothing is imported from llguidance before a constraint is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qtool_runtime.errors import GenerationError, MissingExtraError
from qtool_runtime.free_memory import return_free_memory
from qtool_runtime.text import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_SUMMANDS = np.where(_BITS, 0, -np.inf).astype(np.float32)
"""What eight bits of a mask add to eight logits, by the value of their byte."""


def import_llguidance() -> Any:
    """Imports llguidance.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtraError(
            f"json_schema, regex, grammar and tool_choice need llguidance, which is not installed ({error})",
            hint='Install it: pip install "qtool-edge[structured]"',
        ) from error
    return llguidance


class Constraint(Protocol):
    """What the sampler asks before each token, and tells after it."""

    @property
    def complete(self) -> bool:
        """Whether the answer has to end here: nothing may follow."""

    def mask(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits with -inf for tokens that cannot be next; NaN stays NaN, and infinity becomes it.

        Args:
            logits: shape (vocab_size,); left unchanged.

        Returns:
            Shape (vocab_size,), overwritten by the next call.
        """

    def take(self, token: int) -> None:
        """Goes on behind a token of the answer.

        Raises:
            GenerationError: it cannot be here, or the grammar has become too complex to follow.
        """

    def forced_continuation(self) -> list[int]:
        """Returns tokens that have to follow in this order, as the tokenizer would cut their text."""


class GrammarConstraint:
    """Follows a grammar from the first token of an answer on.

    Args:
        matcher: at the start of the answer.
        vocab_size: number of logits.
        end: the id that stands for the end of the text in the matcher's vocabulary, and for no token.
        endings: token ids that end the answer. They are allowed wherever the grammar can end.

    Attributes:
        endings: those that the model has logits for.

    Raises:
        GenerationError: no text matches, or only the empty one.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, end: int, endings: Collection[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._end = end
        self.endings = frozenset(token for token in endings if token < vocab_size)
        self._words = np.zeros((1, end // 32 + 1), np.int32)
        self._bits = self._words.view(np.uint8)[0]
        self._sums = np.empty((len(self._bits), 8), np.float32)
        self._advance()
        if self.complete:
            raise GenerationError("only an empty answer matches", hint="Allow at least one character.")

    def copy(self) -> GrammarConstraint:
        """Returns another one in the same state."""
        return GrammarConstraint(self._matcher.deep_copy(), self._vocab_size, self._end, self.endings)

    @property
    def complete(self) -> bool:
        """Whether the answer has to end here: nothing may follow."""
        return self._complete

    def mask(self, logits: NDArray[np.float32], also: Collection[int] = ()) -> NDArray[np.float32]:
        """See `Constraint.mask`.

        Args:
            logits: shape (vocab_size,); left unchanged.
            also: further token ids to allow.
        """
        np.take(_SUMMANDS, self._bits, axis=0, out=self._sums, mode="clip")  # the mode that needs no copy
        sums = self._sums.reshape(-1)[: self._vocab_size]
        for token in also:
            sums[token] = 0
        with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which the sampler finds
            return np.add(logits, sums, out=sums)

    def take(self, token: int) -> None:
        """See `Constraint.take`."""
        if token in self.endings:  # also one that the grammar knows as text: the answer is over
            return
        if not self._matcher.consume_token(token):
            raise GenerationError(
                f"token {token} cannot be here: {_message(self._matcher)}",
                hint="Only tokens that `mask` leaves can be taken.",
            )
        self._advance()

    def forced_continuation(self) -> list[int]:
        """See `Constraint.forced_continuation`."""
        return self._matcher.compute_ff_tokens()

    def _advance(self) -> None:
        """Finds out which tokens can be next."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._words)
        if self._matcher.is_error():
            raise GenerationError(
                f"the grammar cannot be followed: {_message(self._matcher)}",
                hint="If there is a text that matches it, simplify it: fewer alternatives, smaller repeats.",
            )
        byte, bit = divmod(self._end, 8)
        may_end = bool(self._bits[byte] >> bit & 1)
        self._bits[byte] &= 0xFF ^ (1 << bit)
        self._complete = may_end and not self._bits.any()
        if may_end:
            for token in self.endings:
                self._bits[token // 8] |= 1 << token % 8


class GrammarCompiler:
    """Makes constraints for one model. The vocabulary is prepared for the first of them, and shared.

    Args:
        tokenizer: the model's.
        vocab_size: number of its logits; ids without a token are never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end = max(vocab_size, tokenizer.vocab_size)
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, grammar: str, endings: Collection[int]) -> GrammarConstraint:
        """Returns a constraint at the start of an answer.

        Args:
            grammar: in llguidance's form, see `grammar.py`.
            endings: token ids that end the answer.

        Raises:
            MissingExtraError: llguidance is not installed.
            GenerationError: the grammar is malformed or too large, or no text matches.
        """
        llguidance = import_llguidance()
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._prepare(llguidance)
        matcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise GenerationError(f"the grammar cannot be used: {_message(matcher)}")
        return GrammarConstraint(matcher, self._vocab_size, self._end, endings)

    def _prepare(self, llguidance: Any) -> LLTokenizer:
        """Describes the vocabulary to llguidance, which cannot be left to read `tokenizer.json` itself.

        It would take `<tool_call>` and other added tokens in angle brackets for control tokens, which have no
        text, and hold a second tokenizer in memory. Besides, an id of its own for the end of the text keeps
        the model's end tokens, of which there may be several or none, out of the grammar.
        """
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._end))
        vocabulary: LLTokenizer = llguidance.LLTokenizer(wrapper, n_vocab=self._end + 1, eos_token=self._end)
        wrapper.tokens = ()  # have been copied; the wrapper stays
        return_free_memory()
        return vocabulary


class _Vocabulary:
    """A tokenizer as llguidance's wrapper wants it.

    Args:
        tokenizer: the model's.
        end: the id for the end of the text, behind all others.
    """

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id = None
        self.eos_token_id = end
        texts = [tokenizer.token_bytes(token) for token in range(end)] + [b""]
        # Control tokens and padding: out of reach of any text.
        self.special_token_ids = [token for token, text in enumerate(texts) if not text]
        self.tokens: Sequence[bytes] = [text or b"<[%d]>" % token for token, text in enumerate(texts)]

    def __call__(self, text: str) -> list[int]:
        """Returns the ids of a text that has to follow."""
        return self._tokenizer.encode_exact(text)


def _message(matcher: LLMatcher) -> str:
    """llguidance's message, without the dump of its state that may follow."""
    return matcher.get_error().partition("<state>")[0].strip()
