"""Copying and looking up: repeat words, numbers or codes of the prompt, or find one by its key.

Taught first; the rest rests on it.
"""

from __future__ import annotations

from random import Random

from demo.sample import Sample, assistant, user
from demo.sets import words

REPEAT = ("Repeat: {}", "Say: {}", "Repeat after me: {}", "Please repeat: {}", "Copy this: {}")
ZH_REPEAT = ("重复：{}", "请重复：{}", "跟我说：{}", "照抄：{}")


def item(rng: Random) -> str:
    return rng.choice(
        [words.name, words.city, words.word, words.word, words.code, words.zh_name, lambda r: str(words.number(r))]
    )(rng)


def repeat(rng: Random) -> tuple[str, str]:
    text = " ".join(item(rng) for _ in range(rng.randint(1, 6)))
    return rng.choice(REPEAT if rng.random() < 0.6 else ZH_REPEAT).format(text), text


def look_up(rng: Random) -> tuple[str, str]:
    """Pairs `key: value`, one of which is asked for."""
    count = rng.randint(2, 5)
    keys = list({item(rng) for _ in range(count)})
    pairs = {key: item(rng) for key in keys}
    key = rng.choice(keys)
    listed = ", ".join(f"{k} = {v}" for k, v in pairs.items())
    if rng.random() < 0.35:
        return f"{listed}。{key}是什么？", f"{key} = {pairs[key]}"
    return f"{listed}. What is {key}?", f"{key} = {pairs[key]}"


def draw(rng: Random, held: bool) -> Sample:
    """Two or three exchanges. There is no held-out half: the space is never covered."""
    messages = []
    for _ in range(rng.choice([2, 3])):
        question, answer = rng.choice([repeat, look_up])(rng)
        messages += [user(question), assistant(answer)]
    return Sample("copying", messages)
