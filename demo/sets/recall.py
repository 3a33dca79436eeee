"""Facts told in early turns and asked for later, other turns in between. English and Chinese.

The held-out key is the pair (kind of fact, its value) together with the first other fact: unseen combinations.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from demo.sample import Sample, assistant, draw_key, user
from demo.sets import arith, chat, words

Fact = tuple[str, Callable[[Random], str], tuple[str, ...], tuple[str, ...], str]
# kind, value, ways to tell it, ways to ask, the answer
FACTS: tuple[Fact, ...] = (
    (
        "name",
        words.name,
        ("My name is {}.", "I am called {}.", "My name is {}, nice to meet you."),
        ("What is my name?", "Do you remember my name?"),
        "Your name is {}.",
    ),
    (
        "city",
        words.city,
        ("I live in {}.", "My home is in {}."),
        ("Where do I live?", "Which city do I live in?"),
        "You live in {}.",
    ),
    (
        "colour",
        lambda r: r.choice(words.COLOURS),
        ("My favourite colour is {}.", "I like the colour {}."),
        ("What is my favourite colour?", "Which colour do I like?"),
        "Your favourite colour is {}.",
    ),
    (
        "number",
        lambda r: str(words.number(r)),
        ("My lucky number is {}.", "Remember the number {}."),
        ("What is my number?", "Which number did I tell you?"),
        "Your number is {}.",
    ),
    ("age", lambda r: str(r.randint(10, 99)), ("I am {} years old.",), ("How old am I?",), "You are {} years old."),
    (
        "pet",
        lambda r: r.choice(words.ANIMALS),
        ("I have a pet {}.", "My pet is a {}."),
        ("What pet do I have?", "What is my pet?"),
        "You have a pet {}.",
    ),
    (
        "food",
        lambda r: r.choice(words.FOODS),
        ("I like to eat {}.", "My favourite food is {}."),
        ("What is my favourite food?", "What do I like to eat?"),
        "Your favourite food is {}.",
    ),
    ("hobby", lambda r: r.choice(words.HOBBIES), ("My hobby is {}.",), ("What is my hobby?",), "Your hobby is {}."),
    (
        "friend",
        words.name,
        ("My best friend is {}.", "My friend is called {}."),
        ("What is the name of my friend?", "Who is my best friend?"),
        "Your friend is {}.",
    ),
    (
        "code",
        words.code,
        ("The code is {}.", "Remember the code {}."),
        ("What is the code?", "Which code did I tell you?"),
        "The code is {}.",
    ),
)
ZH_FACTS: tuple[Fact, ...] = (
    ("name", words.zh_name, ("我叫{}。", "我的名字是{}。"), ("我叫什么名字？", "我的名字是什么？"), "你叫{}。"),
    (
        "city",
        lambda r: r.choice(words.ZH_CITIES),
        ("我住在{}。", "我家在{}。"),
        ("我住在哪里？", "我住在哪个城市？"),
        "你住在{}。",
    ),
    (
        "colour",
        lambda r: r.choice(words.ZH_COLOURS),
        ("我最喜欢的颜色是{}。", "我喜欢{}。"),
        ("我最喜欢什么颜色？", "我喜欢什么颜色？"),
        "你最喜欢的颜色是{}。",
    ),
    (
        "number",
        lambda r: str(words.number(r)),
        ("我的幸运数字是{}。", "请记住数字{}。"),
        ("我的数字是多少？", "我说的数字是几？"),
        "你的数字是{}。",
    ),
    ("age", lambda r: str(r.randint(10, 99)), ("我今年{}岁。",), ("我今年几岁？", "我多大了？"), "你今年{}岁。"),
    (
        "pet",
        lambda r: r.choice(words.ZH_ANIMALS),
        ("我养了一只{}。", "我的宠物是{}。"),
        ("我养了什么宠物？", "我的宠物是什么？"),
        "你的宠物是{}。",
    ),
    (
        "food",
        lambda r: r.choice(words.ZH_FRUITS),
        ("我爱吃{}。", "我最爱吃的是{}。"),
        ("我爱吃什么？", "我最爱吃什么？"),
        "你爱吃{}。",
    ),
    ("hobby", lambda r: r.choice(words.ZH_HOBBIES), ("我的爱好是{}。",), ("我的爱好是什么？",), "你的爱好是{}。"),
    ("friend", words.zh_name, ("我的好朋友叫{}。",), ("我的好朋友叫什么？",), "你的好朋友叫{}。"),
)
ACK = ("I will remember that.", "Thank you for telling me.", "Got it.")
ZH_ACK = ("好的，我记住了。", "好的。", "谢谢你告诉我。")


def filler(rng: Random, zh: bool, held: bool) -> list[dict[str, str]]:
    """A turn about something else."""
    if rng.random() < 0.2:
        sum_ = arith.draw(rng, held)
        return sum_.messages[:2]
    questions, answer = rng.choice([p for p in chat.PAIRS if (ord(p[1][0]) > 255) == zh])
    return [user(rng.choice(questions)), assistant(answer)]


def asked(rng: Random, fact: Fact, value: str) -> list[dict[str, str]]:
    return [user(rng.choice(fact[3])), assistant(fact[4].format(value))]


def told(rng: Random, facts: list[tuple[Fact, str]], zh: bool) -> list[dict[str, str]]:
    """One or two facts a turn, each turn acknowledged the same way within a conversation."""
    messages: list[dict[str, str]] = []
    ack = rng.choice(ZH_ACK if zh else ACK)
    while facts:
        take = min(len(facts), rng.choice([1, 1, 2]))
        text = ("" if zh else " ").join(rng.choice(fact[2]).format(value) for fact, value in facts[:take])
        messages += [user(text), assistant(ack)]
        facts = facts[take:]
    return messages


def draw(rng: Random, held: bool) -> Sample:
    """Two to four facts, sometimes another turn, then questions about them; held-out items ask one question."""
    zh = rng.random() < 0.4
    table = ZH_FACTS if zh else FACTS
    kinds = rng.sample(range(len(table)), rng.choice([2, 3, 3, 4]))

    def values(r: Random) -> tuple[str, ...]:
        return tuple(table[k][1](r) for k in kinds)

    drawn = draw_key(rng, held, values)
    facts = [(table[k], v) for k, v in zip(kinds, drawn, strict=True)]
    messages = told(rng, facts, zh)
    if rng.random() < 0.5:
        messages += filler(rng, zh, held)
    questions = rng.sample(facts, 1 if held else rng.randint(min(2, len(facts)), len(facts)))
    for fact, value in questions:
        messages += asked(rng, fact, value)
    value = questions[-1][1]
    return Sample("recall", messages, {"value": value, "others": sorted({v for _, v in facts} - {value})})
