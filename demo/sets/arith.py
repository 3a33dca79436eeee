"""Addition and subtraction of two numbers, worked digit by digit from the right in one fixed form, English or Chinese.

Two digits mostly, some three. Subtractions have a result of zero or more. The key of the held-out rule is (op, a, b).
"""

from __future__ import annotations

from random import Random

from demo.sample import Sample, assistant, draw_key, user

PLACES = ("Ones", "Tens", "Hundreds")
ZH_PLACES = ("个位", "十位", "百位")
ASK = (
    "What is {a} {o} {b}?",
    "What is {a} {w} {b}?",
    "Compute {a} {o} {b}.",
    "{a} {o} {b} = ?",
    "Calculate {a} {w} {b}.",
    "{a}{o}{b}=?",
    "How much is {a} {o} {b}?",
    "{a} {o} {b}",
    "Please calculate {a} {o} {b}.",
)
ZH_ASK = (
    "{a}{w}{b}等于多少？",
    "{a} {o} {b} 等于几？",
    "计算{a}{o}{b}。",
    "请计算 {a} {o} {b}。",
    "{a} {o} {b} = ？",
    "{a}{w}{b}是多少？",
)


def digits_of(value: int, width: int) -> list[int]:
    """Decimal digits, ones first."""
    return [value // 10**i % 10 for i in range(width)]


def column(op: str, x: int, y: int, carry: int) -> tuple[str, int, int]:
    """One column worked out: (its text, digit written, carry or borrow handed on)."""
    tail = f" {op} 1" if carry else ""
    total = x + y + carry if op == "+" else x - y - carry
    if op == "-" and total < 0:
        return f"1{x} - {y}{tail} = {total + 10}, borrow 1", total + 10, 1
    carried = total // 10
    text = f"{x} {op} {y}{tail} = {total}"
    return (text + f", write {total % 10}, carry 1", total % 10, 1) if carried else (text, total, 0)


def worked(op: str, a: int, b: int, zh: bool) -> str:
    """The whole answer, ending in the sum itself."""
    width = max(len(str(a)), len(str(b)))
    carry, steps = 0, []
    for i, (x, y) in enumerate(zip(digits_of(a, width), digits_of(b, width), strict=True)):
        text, _, carry = column(op, x, y, carry)
        steps.append(f"{ZH_PLACES[i]}：{to_chinese(text)}。" if zh else f"{PLACES[i]}: {text}. ")
    result = a + b if op == "+" else a - b
    return "".join(steps) + (f"所以{a} {op} {b} = {result}。" if zh else f"So {a} {op} {b} = {result}.")


def to_chinese(text: str) -> str:
    return text.replace(", write ", "，写").replace(", carry ", "，进").replace(", borrow ", "，借")


def operands(rng: Random) -> tuple[str, int, int]:
    op = rng.choice("+-")
    top = 1000 if rng.random() < 0.15 else 100
    low = 10 if rng.random() < 0.9 else 0
    a, b = rng.randrange(low, top), rng.randrange(low, top)
    return (op, max(a, b), min(a, b)) if op == "-" else (op, a, b)


def draw(rng: Random, held: bool) -> Sample:
    """One to three sums, each asked and worked."""
    messages, expect = [], {}
    zh = rng.random() < 0.35
    for _ in range(1 if held else rng.choice([1, 1, 2, 3])):
        op, a, b = draw_key(rng, held, operands)
        word = ("加" if op == "+" else "减") if zh else ("plus" if op == "+" else "minus")
        messages.append(user(rng.choice(ZH_ASK if zh else ASK).format(a=a, b=b, o=op, w=word)))
        messages.append(assistant(worked(op, a, b, zh)))
        expect = {"result": a + b if op == "+" else a - b, "operands": [a, b]}
    return Sample("arithmetic", messages, expect)
