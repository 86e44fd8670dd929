"""Constraints at the level of logits and tokens: exactly the right ones are left, and errors are typed."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from qtool_runtime.answer_constraint import AnswerConstraint
from qtool_runtime.constraint import GrammarCompiler, GrammarConstraint
from qtool_runtime.errors import GenerationError, MissingExtraError
from qtool_runtime.grammar import answer_grammar
from qtool_runtime.model import Model
from qtool_runtime.sampling import Sampler, SamplingOptions
from qtool_runtime.text import Tokenizer

pytest.importorskip("llguidance", reason="needs llguidance (the extra `structured`)")

ROWS, END = 300, 290  # more logits than tokens, as real models have
MESSAGES = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, ROWS)


def constraint(grammars: GrammarCompiler, endings: list[int], **asked: object) -> GrammarConstraint:
    rules = answer_grammar(**asked)
    assert rules is not None
    return grammars.compile(rules, endings)


def allowed(held: GrammarConstraint) -> set[int]:
    return set(np.flatnonzero(np.isfinite(held.mask(np.zeros(ROWS, np.float32)))).tolist())


def spell(held: GrammarConstraint, tokenizer: Tokenizer, text: str) -> None:
    """Takes a text byte by byte."""
    byte_tokens = {tokenizer.token_bytes(token): token for token in reversed(range(END))}
    for byte in text.encode():
        held.take(byte_tokens[bytes([byte])])


TEXTS = ["the cat sat", "on the mat", "café", "今天 天气", "日 本", "a<think>b", "façade", "thx"]


@pytest.mark.parametrize("begun", ["", "the ", "th", "caf", "on th"])
def test_allowed_are_the_tokens_that_begin_what_can_follow(
    grammars: GrammarCompiler, tokenizer: Tokenizer, begun: str
) -> None:
    lark = "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in TEXTS)
    held = constraint(grammars, [END], grammar=lark)
    spell(held, tokenizer, begun)
    rests = [text.encode()[len(begun) :] for text in TEXTS if text.startswith(begun)]
    fitting = {
        token
        for token in range(END + 5)
        if (text := tokenizer.token_bytes(token)) and any(rest.startswith(text) for rest in rests)
    }
    forced = held.forced_continuation()
    assert allowed(held) == (set(forced[:1]) or fitting)
    assert set(forced[:1]) <= fitting


def test_no_token_without_text_is_ever_allowed(grammars: GrammarCompiler, tokenizer: Tokenizer) -> None:
    held = constraint(grammars, [], regex=r"(?s:.*)")
    textless = {token for token in range(ROWS) if not tokenizer.token_bytes(token)}
    assert {tokenizer.encode("<|im_end|>")[0], *range(tokenizer.vocab_size, ROWS)} <= textless
    assert not allowed(held) & textless


def test_the_end_is_allowed_where_the_grammar_can_end(
    grammars: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    (end,) = tokenizer.encode("<|im_end|>")
    (other,) = tokenizer.encode("<|endoftext|>")
    held = constraint(grammars, [end, other, 10**6], regex="ab?c?")
    assert not allowed(held) & {end, other}
    spell(held, tokenizer, "a")
    assert {end, other} < allowed(held)
    assert not held.complete
    held.take(end)  # changes nothing: the loop ends there
    spell(held, tokenizer, "c")
    assert held.complete
    assert held.forced_continuation() == []


@pytest.mark.parametrize(
    "text", ["the cat sat on the mat", "cafe\u0301 ø", "a <|im_end|> b", "x<think>y 日 本", "😀"]
)
def test_forced_text_is_cut_as_the_tokenizer_would(
    grammars: GrammarCompiler, tokenizer: Tokenizer, text: str
) -> None:
    """Also names of control tokens, as text, and accents that normalization would join."""
    held = constraint(grammars, [END], grammar=f'start: {json.dumps(text, ensure_ascii=False)} "!"')
    taken: list[int] = []
    while not held.complete:
        forced = held.forced_continuation()
        (token,) = allowed(held)
        assert forced[:1] == [token]
        held.take(token)
        taken.append(token)
    assert b"".join(map(tokenizer.token_bytes, taken)).decode() == text + "!"
    assert taken == tokenizer.encode_exact(text + "!")


@given(
    seed=st.integers(0, 2**32 - 1),
    options=st.fixed_dictionaries(
        {"temperature": st.sampled_from([0.0, 0.7, 5.0])},
        optional={
            "top_k": st.sampled_from([1, 2, 40]),
            "top_p": st.sampled_from([0.1, 0.9]),
            "min_p": st.sampled_from([0.01, 0.5]),
            "repetition_penalty": st.just(1.3),
            "presence_penalty": st.just(2.0),
            "logit_bias": st.just({7: 50.0}),
        },
    ),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_options_the_answer_matches(
    grammars: GrammarCompiler, tokenizer: Tokenizer, seed: int, options: dict
) -> None:
    (end,) = tokenizer.encode("<|im_end|>")
    held = constraint(grammars, [end], regex="(the|cat|mat|[0-9]{2}|é)( (sat|on))?")
    random = np.random.default_rng(seed)
    sampler = Sampler(SamplingOptions(seed=seed, **options), constraint=held)
    taken: list[int] = []
    while not sampler.complete:
        token = sampler.choose(random.normal(0, 3, ROWS).astype(np.float32))
        if token == end:
            break
        taken.append(token)
        assert len(taken) < 20
    text = b"".join(map(tokenizer.token_bytes, taken)).decode()
    words = text.split(" ")
    assert words[0] in ("the", "cat", "mat", "é") or (len(words[0]) == 2 and words[0].isdigit())
    assert words[1:] in ([], ["sat"], ["on"])


def test_draws_are_those_of_the_allowed_tokens_alone(grammars: GrammarCompiler, tokenizer: Tokenizer) -> None:
    logits = np.random.default_rng(3).normal(0, 1, ROWS).astype(np.float32)
    held = constraint(grammars, [END], regex="[a-e]x")
    ids = sorted(allowed(held))
    assert len(ids) == 5
    counts = dict.fromkeys(ids, 0)
    for seed in range(2000):
        counts[
            Sampler(SamplingOptions(temperature=1.0, seed=seed), constraint=held.copy()).choose(logits)
        ] += 1
    weights = np.exp(logits[ids].astype(np.float64))
    expected = 2000 * weights / weights.sum()
    assert (np.abs(np.array([counts[id] for id in ids]) - expected) < 5 * np.sqrt(expected)).all()


def test_logits_are_left_unchanged_and_copies_go_their_own_ways(
    grammars: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    held = constraint(grammars, [END], regex="ab|cd")
    logits = np.linspace(-1, 1, ROWS, dtype=np.float32)
    before = logits.copy()
    masked = held.mask(logits)
    assert (logits == before).all()
    assert (masked[np.isfinite(masked)] == before[np.isfinite(masked)]).all()
    copy = held.copy()
    spell(copy, tokenizer, "ab")
    assert copy.complete
    assert not held.complete
    spell(held, tokenizer, "cd")
    assert held.complete


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_logits_are_found_among_forbidden_tokens(
    grammars: GrammarCompiler, tokenizer: Tokenizer, value: float
) -> None:
    logits = np.zeros(ROWS, np.float32)
    logits[299] = value
    sampler = Sampler(SamplingOptions(), constraint=constraint(grammars, [END], regex="a+"))
    with pytest.raises(GenerationError, match="the model returned nan"):
        sampler.choose(logits)


def test_bans_that_leave_nothing(grammars: GrammarCompiler, tokenizer: Tokenizer) -> None:
    held = constraint(grammars, [END], regex="[ab]")
    sampler = Sampler(SamplingOptions(banned_ids=sorted(allowed(held))), constraint=held)
    with pytest.raises(GenerationError, match="banned_ids holds 2 ids and leaves no token") as caught:
        sampler.choose(np.zeros(ROWS, np.float32))
    assert "constraint" in caught.value.hint


def test_a_token_that_cannot_be_here(grammars: GrammarCompiler, tokenizer: Tokenizer) -> None:
    held = constraint(grammars, [END], regex="a")
    with pytest.raises(GenerationError, match=f"token {tokenizer.encode('c')[0]} cannot be here") as caught:
        held.take(tokenizer.encode("c")[0])
    assert "<state>" not in caught.value.message


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3"])
def test_official_vocabularies(real_models: Path, family: str) -> None:
    """151,936 rows of logits; tags are one token, and the cuts are the tokenizer's own."""
    tokenizer = Tokenizer.from_file(real_models / "tokenizers" / family / "tokenizer.json")
    grammars = GrammarCompiler(tokenizer, 151_936)
    text = '<tool_call>\n{"name": "wetter_für_住所", "arguments": {"größe": '
    held = constraint(
        grammars, [151_645], grammar=f"start: {json.dumps(text, ensure_ascii=False)} /[0-9]{{3}}/"
    )
    taken: list[int] = []
    while forced := held.forced_continuation():
        held.take(forced[0])
        taken.append(forced[0])
    assert taken == tokenizer.encode(text)[: len(taken)]
    assert len(taken) >= len(tokenizer.encode(text)) - 1  # a digit might join the space before it
    everything = constraint(grammars, [], regex="(?s:.*)").mask(np.zeros(151_936, np.float32))
    textless = [token for token in range(151_936) if not tokenizer.token_bytes(token)]
    assert not np.isfinite(everything[textless]).any()
    assert np.isfinite(everything).sum() > 145_000


# Behind reasoning


def thinking(tokenizer_json: bytes, *added: str) -> Tokenizer:
    """A tokenizer with a closing tag of several tokens, and further tokens."""
    backend = Backend.from_str(tokenizer_json.decode())
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return Tokenizer(backend)


def behind_reasoning(tokenizer: Tokenizer, *, opened: bool, regex: str = "abc") -> AnswerConstraint:
    grammars = GrammarCompiler(tokenizer, ROWS)
    return AnswerConstraint(constraint(grammars, [END], regex=regex), tokenizer, opened=opened)


def left(held: AnswerConstraint) -> set[int]:
    return set(np.flatnonzero(np.isfinite(held.mask(np.zeros(ROWS, np.float32)))).tolist())


def test_reasoning_or_the_answer_comes_first(tokenizer: Tokenizer) -> None:
    (think,), (a,) = tokenizer.encode("<think>"), tokenizer.encode("a")
    held = behind_reasoning(tokenizer, opened=False)
    assert left(held) == {think, a}
    assert held.forced_continuation() == []
    held.take(a)
    assert left(held) == {tokenizer.encode("b")[0]}
    assert tokenizer.decode(held.forced_continuation()) == "bc"


def test_reasoning_is_free_up_to_its_end(tokenizer: Tokenizer) -> None:
    held = behind_reasoning(tokenizer, opened=False)
    for token in tokenizer.encode("<think>\nthe cat <|im_start|> </thi </think"):
        held.take(token)
        assert left(held) == set(range(ROWS)) - {END}
        assert not held.complete
    for text, more in ((">", {"\n", "a"}), ("\n", {"\n", "a"}), ("\n", {"a"}), ("a", {"b"}), ("b", {"c"})):
        (token,) = tokenizer.encode(text)
        held.take(token)
        assert left(held) == {tokenizer.encode(each)[0] for each in more}
    held.take(tokenizer.encode("c")[0])
    assert held.complete


def test_the_answer_may_begin_in_the_token_that_ends_the_tag(tokenizer_json: bytes) -> None:
    tokenizer = thinking(tokenizer_json, "k>\nab", "k>x")
    for last, expected in (("k>\nab", {"c"}), ("k>x", None)):
        held = behind_reasoning(tokenizer, opened=True)
        for token in tokenizer.encode("the </thin"):
            held.take(token)
        (token,) = tokenizer.encode(last)
        if expected is None:
            with pytest.raises(GenerationError, match="cannot be here"):
                held.take(token)
        else:
            held.take(token)
            assert left(held) == {tokenizer.encode(each)[0] for each in expected}


# What cannot be asked for

NOTHING = r"[^\s\S]"
BAD = [
    ({"json_schema": {"type": "cat"}}, "json_schema cannot be used: Invalid type: cat"),
    ({"json_schema": {"uniqueItems": True}}, "json_schema cannot be used: .*uniqueItems"),
    ({"json_schema": {"$ref": "http://example.org/x.json"}}, "json_schema cannot be used: .*example.org"),
    ({"json_schema": {"minimum": 3, "maximum": 1, "type": "integer"}}, "json_schema cannot be used: Unsatis"),
    ({"json_schema": '{"type":'}, "json_schema is not JSON: Expecting value"),
    ({"json_schema": {"enum": {1, 2}}}, "json_schema is not JSON: .*set"),
    ({"json_schema": {"const": float("nan")}}, "json_schema is not JSON"),
    ({"json_schema": [1]}, r"json_schema is \[1\]; valid: a mapping, its JSON text, or True"),
    ({"json_schema": False}, "json_schema is False; valid"),
    ({"json_schema": {"x-guidance": {"nonsense": 1}}}, "json_schema cannot be used: .*nonsense"),
    ({"json_schema": "[" * 100_000}, "json_schema is not JSON"),
    ({"regex": "a(b"}, r"(?s)regex cannot be used: .*unclosed group"),
    ({"regex": "(?=a)b"}, r"(?s)regex cannot be used: .*look-around"),
    ({"regex": 5}, "regex is 5; valid: a text"),
    ({"regex": ""}, "only an empty answer matches"),
    ({"regex": NOTHING}, "the grammar cannot be followed"),
    ({"grammar": "start: cat"}, 'grammar cannot be used: .*unknown name: "cat"'),
    ({"grammar": "start: start 'a'"}, "grammar cannot be used"),
    ({"grammar": ""}, "grammar cannot be used: no start rule"),
    ({"grammar": 'start: start "a"'}, "the grammar cannot be followed"),
    ({"json_schema": {}, "regex": "a"}, "both json_schema and regex are given; valid: at most one"),
    ({"regex": "a", "grammar": "start: A"}, "both regex and grammar are given"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[f"{number}" for number in range(len(BAD))])
@pytest.mark.usefixtures("never_run")
def test_bad_options(model: Model, options: dict, message: str) -> None:
    for start in (lambda: model.generate("the cat", **options), lambda: model.chat(MESSAGES, **options)):
        with pytest.raises(GenerationError, match=message) as caught:
            start()
        assert "<state>" not in caught.value.message


def test_a_grammar_that_becomes_too_complex(model: Model) -> None:
    nested = "(" * 40 + "a?" + "){0,20}" * 40
    with pytest.raises(GenerationError, match=r"(the grammar|regex) cannot be (used|followed)"):
        model.generate("the cat", regex=nested, max_tokens=30).read()


def test_without_llguidance(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for options in ({"json_schema": True}, {"regex": "a"}, {"grammar": 'start: "a"'}):
        with pytest.raises(MissingExtraError, match="llguidance, which is not installed") as caught:
            model.generate("the cat", **options)
        assert caught.value.hint == 'Install it: pip install "qtool-edge[structured]"'
    model.generate("the cat", max_tokens=2).read()


def test_the_vocabulary_is_prepared_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []
    prepare = GrammarCompiler._prepare

    def counting(self: GrammarCompiler, llguidance: object) -> object:
        prepared.append(1)
        return prepare(self, llguidance)

    monkeypatch.setattr(GrammarCompiler, "_prepare", counting)
    grammars = GrammarCompiler(tokenizer, ROWS)
    assert not prepared
    threads = [threading.Thread(target=lambda: constraint(grammars, [END], regex="a")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert prepared == [1]
