"""Ask a training model every held-out item, greedily, with its weights rounded to bf16 as they are shipped.

Contract: `measure(model, tokenizer, items)` gives one `Result` a set, in the order of `demo_sets.SETS`; `table`
prints them. The judge is the one `tokenmill eval demo` uses.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from demo.generate import Limits, answers
from demo.model import DemoModel
from demo.sample import Sample, plugin_message, segments
from demo.tokenizer import STOPS
from tokenmill.eval.tasks.demo_sets import GOALS, MAX_ANSWER_TOKENS, SETS, DemoItem, check


@dataclass(frozen=True, slots=True)
class Result:
    set: str
    right: int
    ended: int
    total: int
    wrong: tuple[tuple[DemoItem, str], ...] = ()

    @property
    def share(self) -> float:
        return self.right / self.total


def prompt_text(item: DemoItem) -> str:
    """What a server would send: the functions behind the system message, and the header of the answer."""
    messages = list(item.messages)
    if item.tools:
        messages.insert(int(messages[0]["role"] == "system"), plugin_message(item.tools))
    return "".join(text for text, _ in segments(Sample(item.set, messages))) + "<|im_start|>assistant\n"


def rounded(model: DemoModel) -> DemoModel:
    """A copy in fp32 with weights that bf16 can hold."""
    out = copy.deepcopy(model).float()
    with torch.no_grad():
        for p in out.parameters():
            p.copy_(p.bfloat16())
    return out.eval()


def measure(model: DemoModel, tokenizer: Tokenizer, items: Sequence[DemoItem], keep: int = 3) -> list[Result]:
    stop_ids = frozenset(tokenizer.token_to_id(t) for t in STOPS)
    limits = Limits(stop_ids, MAX_ANSWER_TOKENS, batch=256 if model.head.is_cuda else 64)
    model = rounded(model)
    return [measure_set(model, tokenizer, [i for i in items if i.set == name], limits, keep) for name in SETS]


def measure_set(model: DemoModel, tokenizer: Tokenizer, items: list[DemoItem], limits: Limits, keep: int) -> Result:
    prompts = [tokenizer.encode("<s>" + prompt_text(i), add_special_tokens=False).ids for i in items]
    right, ended, wrong = 0, 0, []
    for item, (ids, stopped) in zip(items, answers(model, prompts, limits), strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        good = check(item, text, stopped)
        right, ended = right + good, ended + stopped
        if not good and len(wrong) < keep:
            wrong.append((item, text))
    return Result(items[0].set, right, ended, len(items), tuple(wrong))


def table(results: list[Result]) -> str:
    lines = [f"{'set':12} {'right':>6} {'of':>5} {'share':>7} {'goal':>6} {'ended':>7}"]
    for r in results:
        mark = "" if r.share >= GOALS[r.set] else "  below the goal"
        ended = f"{r.ended / r.total:7.1%}"
        lines.append(f"{r.set:12} {r.right:6} {r.total:5} {r.share:7.1%} {GOALS[r.set]:6.0%} {ended}{mark}")
    return "\n".join(lines)
