"""Grammars: a sampler that draws anything the mask allows always ends in what the grammar means.

The judges are other programs: `jsonschema` and `json`, Python's `re`, and plain lists.
"""

from __future__ import annotations

import json
import re
import time
from functools import cache
from random import Random

import jsonschema
import pytest
from tests.support.drawing import SIZE, allowed, sample
from tests.support.echo import byte_tokenizer
from tests.support.schemas import random_schema
from tests.support.timing import best
from tests.support.tokenizers_made import made

from tokenmill.api.formats import grammar_of
from tokenmill.api.grammars import GrammarCheck, token_table
from tokenmill.errors import ConfigError, RequestError
from tokenmill.grammar.compiler import Compiler, Matcher, TokenTable
from tokenmill.grammar.spec import KINDS
from tokenmill.tokenize.tokenizer import Tokenizer
from tokenmill.types import GrammarSpec


@cache
def compiler() -> Compiler:
    return Compiler(token_table(byte_tokenizer(), (257,), SIZE))


@pytest.mark.parametrize("block", range(4))
def test_masked_samples_of_random_schemas_are_valid(block: int) -> None:
    """100 schemas over the four blocks."""
    ended = 0
    for number in range(25):
        rng = Random(1000 * block + number)
        schema = random_schema(rng)
        text = sample(compiler().compile(GrammarSpec("json_schema", json.dumps(schema))), rng)
        if text is not None:
            jsonschema.validate(json.loads(text), schema)
            ended += 1
    assert ended >= 23, "most answers must end within their length"


def test_json_object_gives_objects() -> None:
    values = [sample(compiler().compile(GrammarSpec("json_object", "")), Random(n), 400) for n in range(8)]
    found = [json.loads(text) for text in values if text is not None]
    assert len(found) >= 4 and all(isinstance(value, dict) for value in found)


@pytest.mark.parametrize("pattern", ["[a-f]{3}x?", "(yes|no), [0-9]{1,4}", "二+|三", r"\d\d:\d\d", "a*b*c"])
def test_regex_matches_the_whole_answer(pattern: str) -> None:
    for seed in range(5):
        text = sample(compiler().compile(GrammarSpec("regex", pattern)), Random(seed))
        assert text is not None and re.fullmatch(pattern, text)


def test_choice_gives_each_choice() -> None:
    words = ["yes", "no", "no way", "二", 'quo"te', "back\\slash", "new\nline"]
    spec = GrammarSpec("choice", json.dumps(words))
    seen = {sample(compiler().compile(spec), Random(seed)) for seed in range(60)}
    assert seen <= set(words) and len(seen) >= 6


def test_lark() -> None:
    spec = GrammarSpec("ebnf", 'start: sum\nsum: NUMBER ("+" NUMBER)+\nNUMBER: /[1-9][0-9]?/')
    for seed in range(5):
        text = sample(compiler().compile(spec), Random(seed), 300)
        assert text is None or re.fullmatch(r"[1-9]\d?(\+[1-9]\d?)+", text)


def test_structural_tag() -> None:
    spec = grammar_of({
        "type": "structural_tag", "triggers": ["<f="],
        "structures": [{"begin": "<f=add>", "schema": {"type": "object", "properties": {"n": {"type": "integer"}},
                        "required": ["n"], "additionalProperties": False}, "end": "</f>"}],
    })  # fmt: skip
    assert spec is not None
    matcher = compiler().compile(spec)
    assert all(matcher.accept(byte) for byte in b"Some words, <b>, then <f=add>")
    assert allowed(matcher) == [ord("{")]
    assert all(matcher.accept(byte) for byte in b'{"n": 5}</f> and more')
    assert matcher.complete and 257 in allowed(matcher)
    other = compiler().compile(spec)
    assert not all(other.accept(byte) for byte in b"<f=sub>{}</f>")


def test_structural_tag_with_a_special_token() -> None:
    value = {"triggers": ["<|action_start|>"], "structures": [
        {"begin": "<|action_start|><|plugin|>", "schema": {"type": "object"}, "end": "<|action_end|>"}]}  # fmt: skip
    matcher = compiler().compile(GrammarSpec("structural_tag", json.dumps(value)))
    start, end, plugin = 260, 261, 262
    assert all(matcher.accept(token) for token in (*b"hm ", start))
    assert allowed(matcher) == [plugin]
    assert all(matcher.accept(token) for token in (plugin, *b"{}"))
    assert end in allowed(matcher)


def test_end_tokens_again_and_again_and_back() -> None:
    matcher = compiler().compile(GrammarSpec("choice", '["ab"]'))
    assert allowed(matcher) == [ord("a")]
    assert matcher.accept(ord("a")) and not matcher.accept(ord("z")) and matcher.accept(ord("b"))
    assert matcher.complete and set(allowed(matcher)) == {257, 259}
    assert matcher.accept(259) and matcher.accept(257) and matcher.accept(257)
    assert not matcher.accept(ord("a"))
    matcher.rollback(4)
    assert allowed(matcher) == [ord("b")]
    with pytest.raises(ValueError, match=r"\w"):
        matcher.rollback(9)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "sentencepiece"])
def test_real_vocabularies(kind: str) -> None:
    """Pieces of many bytes: sampled answers parse, and the tokenizer's own spelling of a valid text is accepted."""
    backend, ours = made(kind)
    size = ours.vocabulary.size
    made_compiler = Compiler(token_table(ours, (), size))
    schema = {"type": "object", "properties": {"name": {"enum": ["fox", "狐狸"]}, "n": {"type": "integer"}},
              "required": ["name", "n"], "additionalProperties": False}  # fmt: skip
    spec = GrammarSpec("json_schema", json.dumps(schema))
    for seed in range(6):
        text = _sample_pieces(made_compiler.compile(spec), ours, Random(seed))
        jsonschema.validate(json.loads(text), schema)
    matcher = made_compiler.compile(spec)
    ids = backend.encode('{"name": "狐狸", "n": 12}', add_special_tokens=False).ids
    assert kind == "sentencepiece" or all(matcher.accept(token) for token in ids)


def _sample_pieces(matcher: Matcher, tokenizer: Tokenizer, rng: Random) -> str:
    ids: list[int] = []
    for _ in range(300):
        mask = matcher.mask()
        tokens = [t for t in range(tokenizer.vocabulary.size) if mask[t >> 3] >> (t & 7) & 1]
        ends = [t for t in tokens if t in tokenizer.vocabulary.special_ids]
        token = rng.choice(ends or [t for t in tokens if tokenizer.vocabulary.token_bytes(t).strip()] or tokens)
        assert matcher.accept(token)
        if ends:
            break
        ids.append(token)
    return b"".join(tokenizer.vocabulary.token_bytes(token) for token in ids).decode()


BAD = [
    ("json_schema", "{", "not JSON"), ("json_schema", "5", "object"), ("json_schema", "false", "false"),
    ("json_schema", '{"type": "no such type"}', "no such type"), ("regex", "(", "regex"), ("regex", "a{5", "a"),
    ("json_schema", '{"not": {"type": "null"}}', "not"), ("choice", "[]", "choices"), ("choice", '["a", 5]', "choices"),
    ("choice", json.dumps([str(i) for i in range(1025)]), "1025"), ("ebnf", "start: missing", "missing"),
    ("ebnf", "", "ebnf"), ("structural_tag", "{}", "structures"), ("nonsense", "", "nonsense"),
    ("structural_tag", '{"structures": [{"begin": "x"}], "triggers": ["y"]}', "'x'"),
    ("json_schema", json.dumps({"description": "x" * 70_000}), "65536"),
    ("json_schema", "[" * 100 + "]" * 100, "32"), ("json_schema", "[" * 60_000, "JSON"),
    ("json_schema", '{"$ref": "http://example.com/x"}', "example.com"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "named"), BAD)
def test_what_is_no_grammar_is_refused(kind: str, text: str, named: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiler().compile(GrammarSpec(kind, text))
    assert caught.value.status == 400 and named in str(caught.value) and len(str(caught.value)) < 500


HOSTILE = [
    ("regex", "(a{1,1000}){1,1000}b"), ("regex", "(a|a)*" * 500 + "b"), ("regex", "(.*a.{30}){20}"),
    ("regex", "(" * 2000 + "a" + ")" * 2000), ("regex", "[^x]{60000}"),
    ("ebnf", "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1} | r{i + 1}" for i in range(40)) + '\nr40: "x" |'),
    ("ebnf", 'start: start start | start | ""'),
    ("json_schema", json.dumps({"anyOf": [{"type": "string", "pattern": f"^({i}.*){{9}}$"} for i in range(300)]})),
    ("json_schema", json.dumps({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}},
                                "$ref": "#/$defs/a"})),
    ("json_schema", json.dumps({"type": "array", "minItems": 1_000_000, "items": {"type": "array", "minItems": 9999}})),
    ("json_schema", json.dumps({"properties": {f"k{i}": {"type": "integer"} for i in range(2500)}})),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), HOSTILE)
def test_hostile_grammars_cost_little(kind: str, text: str) -> None:
    """Compiled or refused within two seconds of this machine; then a few masks, or an error of its own."""

    def attempt() -> float:
        started = time.process_time()
        try:
            matcher = compiler().compile(GrammarSpec(kind, text))
            for _ in range(5):
                if not matcher.accept(allowed(matcher)[0]):
                    break
        except (RequestError, ValueError):
            pass
        return time.process_time() - started

    assert best(attempt, 2.0) < 2.0


async def test_the_check_refuses_and_gives_up() -> None:
    check = GrammarCheck(compiler(), limit_s=60.0)
    await check.check(GrammarSpec("regex", "a+"))
    with pytest.raises(RequestError) as caught:
        await check.check(GrammarSpec("regex", "("))
    assert caught.value.status == 400
    check.close()

    class Slow(Compiler):
        def compile(self, spec: GrammarSpec) -> Matcher:
            time.sleep(0.3)
            return super().compile(spec)

    slow = GrammarCheck(Slow(token_table(byte_tokenizer(), (257,), SIZE)), limit_s=0.05)
    with pytest.raises(RequestError, match=r"0\.05 s"):
        await slow.check(GrammarSpec("regex", "a"))
    slow.close()


def test_a_vocabulary_without_an_end_cannot_be_constrained() -> None:
    with pytest.raises(ConfigError, match="end-of-text"):
        Compiler(TokenTable(10, lambda t: b"", lambda t: [], {}, ()))
    assert len(KINDS) == 7
