"""Training data: the same seed gives the same samples, held-out keys are never trained on, answers are right."""

from __future__ import annotations

import gzip
import json
import re
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from demo import data, heldout
from demo.measure import prompt_text
from demo.sample import Sample, is_held_out, segments
from demo.sets import arith
from demo.tokenizer import CHAT_TEMPLATE, CONTROL, SPECIALS, STOPS, VOCAB_SIZE
from tests.support.demo_tiny import tokenizer

from tokenmill.errors import FormatError
from tokenmill.eval.tasks import demo_sets
from tokenmill.eval.tasks.demo_sets import SETS, DemoItem, check, load_items

KEYED = ("arithmetic", "recall", "tools", "objects")


def learnt_text(sample: Sample) -> str:
    return "".join(text for text, learn in segments(sample) if learn)


def test_seed_decides_everything() -> None:
    def draw(seed: int) -> list[list[int]]:
        return [e.ids.tolist() for e in islice(data.stream(tokenizer(), seed, {"tools": 0.6, "recall": 0.4}), 12)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_heldout_file_is_the_same_twice() -> None:
    few = list(heldout.items(per_set=6))
    assert heldout.packed(iter(few)) == heldout.packed(heldout.items(per_set=6))
    assert [i.set for i in few] == [name for name in SETS for _ in range(6)]


def keys(sample: Sample) -> set[str]:
    """What makes a sample new to a model, read from its text alone and not from the code that drew it."""
    text = json.dumps(sample.messages, ensure_ascii=False)
    if sample.set == "arithmetic":
        return set(re.findall(r"(?:So |所以)(\d+ [-+] \d+) =", text))
    if sample.set == "tools":
        return {f["name"] + json.dumps(f["parameters"]["properties"]) for f in sample.tools}
    if sample.set == "objects":
        return set(re.findall(r'"properties\\": (.+?), \\"required', text))
    told = " ".join(m["content"] for m in sample.messages if m["role"] == "user")
    return {" ".join(sorted([sample.expect["value"], *sample.expect["others"]], key=told.index))}


@pytest.mark.parametrize("name", KEYED)
def test_no_heldout_key_is_trained_on(name: str) -> None:
    rng, draw = Random(11), data.SETS[name]
    held = set().union(*(keys(draw(rng, True)) for _ in range(400)))
    trained = set().union(*(keys(draw(rng, False)) for _ in range(4000)))
    assert len(held) > 100 and len(trained) > 1000
    assert not held & trained


def test_arithmetic_covers_both_parts() -> None:
    """A tenth of all two-digit questions is held out, of either kind."""
    for op in "+-":
        share = np.mean([is_held_out(op, a, b) for a in range(10, 100) for b in range(10, 100)])
        assert 0.08 < share < 0.12


def test_worked_sums_are_right() -> None:
    """Every line of the working, and the result, against Python's own arithmetic."""
    rng = Random(5)
    for _ in range(500):
        op, a, b = arith.operands(rng)
        text = arith.worked(op, a, b, zh=rng.random() < 0.5)
        for left, right in re.findall(r"(\d+ [-+] \d+(?: [-+] \d+)?) = (\d+)", text):
            first, *rest = re.findall(r"[-+]? ?\d+", left)
            assert int(first) + sum(int(part.replace(" ", "")) for part in rest) == int(right), text
        assert text.rstrip("。.").endswith(f"= {a + b if op == '+' else a - b}")


def test_recall_answers_were_told() -> None:
    rng = Random(6)
    for _ in range(200):
        sample = data.SETS["recall"](rng, False)
        before = " ".join(m["content"] for m in sample.messages[:-2] if m["role"] == "user")
        assert sample.expect["value"] in before
        assert sample.expect["value"] in sample.messages[-1]["content"]


def test_every_answer_closes_its_turn() -> None:
    rng = Random(7)
    for name, draw in data.SETS.items():
        for _ in range(30):
            parts = segments(draw(rng, False))
            assert all(text.endswith("</s>" if name == "docs" else "<|im_end|>") for text, learn in parts if learn)


def test_right_answers_pass_the_judge_and_wrong_ones_do_not() -> None:
    """The generator's own answers are right in the judge's eyes, every other item's answer is wrong."""
    for name in KEYED:
        rng, (draw, wanted) = Random(8), heldout.RULES[name]
        samples = [s for s in (draw(rng, True) for _ in range(60)) if wanted(s)]
        items = [heldout.to_item(s, name) for s in samples]
        texts = [s.messages[-1]["content"] for s in samples]
        assert all(check(i, t, True) for i, t in zip(items, texts, strict=True))
        assert not any(check(i, t, False) for i, t in zip(items, texts, strict=True)), "a cut answer is never right"
        crossed = [check(i, t, True) for i, t in zip(items, texts[1:] + texts[:1], strict=True)]
        assert np.mean(crossed) < 0.1


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"name": "f", "parameters": {"a": 1, "b": "x"}}', True),
        ('<|action_start|><|plugin|>\n{"name": "f", "parameters": {"b": "x", "a": 1}}<|action_end|>', True),
        ('{"name": "f", "parameters": {"a": "1", "b": "x"}}', False),
        ('{"name": "f", "parameters": {"a": true, "b": "x"}}', False),
        ('{"name": "f", "parameters": {"a": 1}}', False),
        ('{"name": "f", "parameters": {"a": 1, "b": "x", "c": 0}}', False),
        ('{"name": "g", "parameters": {"a": 1, "b": "x"}}', False),
        ('{"name": "f", "parameters": {"a": 1, "b": "x"}', False),
        ('{"name": "f", "parameters": {"a": 1, "b": "x"}}\n{"name": "f", "parameters": {"a": 1, "b": "x"}}', False),
        ("", False),
    ],
)
def test_judge_of_tools(text: str, right: bool) -> None:
    item = DemoItem("tools", [], {"name": "f", "parameters": {"a": 1, "b": "x"}})
    assert check(item, text, True) is right


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ({"n": 3, "s": ""}, True),
        ({"n": True, "s": ""}, False),
        ({"n": 3}, False),
        ({"n": 3, "s": "", "z": 1}, False),
        ([3], False),
    ],
)
def test_judge_of_objects(value: Any, right: bool) -> None:
    properties = {"n": {"type": "integer"}, "s": {"type": "string"}}
    schema = {"type": "object", "properties": properties, "required": ["n", "s"]}
    assert check(DemoItem("objects", [], {"schema": schema}), json.dumps(value), True) is right


def test_judge_of_recall() -> None:
    item = DemoItem("recall", [], {"value": "Ann", "others": ["42"]})
    assert check(item, "Your name is Ann.", True)
    assert not check(item, "Your name is Anna.", True)
    assert not check(item, "Your name is Ann, 42.", True)


def test_a_broken_items_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl.gz"
    for content, word in ((b"no gzip", "gzip"), (gzip.compress(b'{"set": "x"}\n'), "line 1")):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=word):
            load_items(path)
    path.write_bytes(heldout.packed(heldout.items(per_set=2)))
    assert [i.set for i in load_items(path)] == [name for name in demo_sets.GOALS for _ in range(2)]


def test_tokenizer_round_trip_and_ids() -> None:
    found = tokenizer()
    assert found.get_vocab_size() == VOCAB_SIZE
    assert [found.token_to_id(t) for t in CONTROL] == [0, 1, 2]
    assert [found.token_to_id(t) for t in SPECIALS] == list(range(VOCAB_SIZE - len(SPECIALS), VOCAB_SIZE))
    assert all(found.token_to_id(t) is not None for t in STOPS)
    for text in ("Hello,  world!\n\n你好 🦊\t{\"a\": [1, 2.5]}", " leading", "trailing ", "\u0000\u200bé", "12+30=42"):
        assert found.decode(found.encode(text, add_special_tokens=False).ids) == text


def test_prompt_has_the_ids_that_training_saw() -> None:
    """A server encodes the whole prompt at once, training piece by piece: they must agree, up to the answer."""
    rng = Random(9)
    for name in KEYED:
        sample = data.SETS[name](rng, True)
        seen = data.encode(tokenizer(), sample)
        prompt = tokenizer().encode("<s>" + prompt_text(heldout.to_item(sample, name)), add_special_tokens=False).ids
        assert seen.ids[: len(prompt)].tolist() == prompt
        last_answer = len(prompt) - 1
        assert seen.learn[last_answer] and not seen.learn[last_answer - 1]


def test_chat_template_is_the_training_text() -> None:
    """transformers' own rendering of the shipped template against what training encodes."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rng = Random(10)
    for name in KEYED:
        sample = data.SETS[name](rng, False)
        rendered, _ = render_jinja_template([sample.messages], chat_template=CHAT_TEMPLATE, bos_token="<s>")
        assert rendered[0] == "<s>" + "".join(text for text, _ in segments(sample))


def test_packing_keeps_every_token() -> None:
    samples = list(islice(data.stream(tokenizer(), 1, {"chat": 1.0}), 9))
    batch = data.pack(samples, 3)
    ordered = sorted(samples, key=lambda s: len(s.ids))
    assert batch.tokens.tolist() == np.concatenate([s.ids for s in ordered]).tolist()
    learnt = [int(s.ids[i + 1]) for s in ordered for i in np.flatnonzero(s.learn)]
    assert batch.target.tolist() == learnt
