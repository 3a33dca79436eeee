"""The mixture of sets: which share of the training tokens each has, the stream of samples, and their packing into
batches.

Contract: everything is drawn from a seeded `Random`; the same seed and shares give the same samples in the same
order. Samples are cut at `MAX_TOKENS`. Shares are of tokens, reached by drawing each set in proportion to share /
mean length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer

from demo.model import Batch
from demo.sample import Draw, Sample, segments, system
from demo.sets import arith, chat, copying, docs, objects, recall, stories, tools

SETS: dict[str, Draw] = {
    "arithmetic": arith.draw,
    "recall": recall.draw,
    "tools": tools.draw,
    "objects": objects.draw,
    "stories": stories.draw,
    "chat": chat.draw,
    "copying": copying.draw,
    "docs": docs.draw,
}
MAX_TOKENS = 640
JOINABLE = ("arithmetic", "recall", "objects", "stories", "chat", "copying")
JOINED_SHARE = 0.15
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are Tokenmill's demo model.",
    "Answer briefly.",
)
ZH_SYSTEMS = ("你是一个有用的助手。", "请用中文回答。", "You are a helpful assistant.")
INTERNLM_SYSTEM = (
    "You are an AI assistant whose name is InternLM (书生·浦语).\n"
    "- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI Laboratory "
    "(上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
    "- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the user such as "
    "English and 中文."
)



@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one sample, and for each position whether the NEXT token is learnt."""

    ids: np.ndarray
    learn: np.ndarray


def joined(rng: Random, sample: Sample) -> Sample:
    """The sample with a conversation about something else in front of it or behind it."""
    other = SETS[rng.choice(JOINABLE)](rng, False)
    first, second = (sample, other) if rng.random() < 0.5 else (other, sample)
    return Sample(sample.set, [*first.messages, *second.messages], sample.expect)


def draw(rng: Random, name: str, held: bool) -> Sample:
    """One sample of a set as it is trained on: some are joined, some get a system message."""
    sample = SETS[name](rng, held)
    if not held and name in JOINABLE and rng.random() < JOINED_SHARE:
        sample = joined(rng, sample)
    return with_system(rng, sample)


def with_system(rng: Random, sample: Sample) -> Sample:
    """Put a system message in front of some samples that have none. Documents stay as they are."""
    roll = rng.random()
    if sample.plain or sample.messages[0]["role"] == "system" or roll > 0.3:
        return sample
    chinese = any("\u4e00" <= c <= "\u9fff" for c in sample.messages[-1]["content"])
    text = INTERNLM_SYSTEM if roll < 0.015 else rng.choice(ZH_SYSTEMS if chinese else SYSTEMS)
    return Sample(sample.set, [system(text), *sample.messages], sample.expect, sample.tools)


def encode(tokenizer: Tokenizer, sample: Sample) -> Encoded:
    """`<s>` and the segments, each encoded apart: prompt and answer are split where a server splits."""
    ids, learnt = [1], [False]
    for text, learn in segments(sample):
        part = tokenizer.encode(text, add_special_tokens=False).ids
        ids += part
        learnt += [learn] * len(part)
    next_learnt = np.array(learnt[1:MAX_TOKENS] + [False])
    return Encoded(np.array(ids[:MAX_TOKENS]), next_learnt[: len(ids)])


def mean_tokens(tokenizer: Tokenizer, name: str, tries: int = 40) -> float:
    rng = Random(name)
    return sum(len(encode(tokenizer, draw(rng, name, False)).ids) for _ in range(tries)) / tries


def stream(tokenizer: Tokenizer, seed: int, shares: dict[str, float], held: bool = False) -> Iterator[Encoded]:
    """Endless encoded samples; `shares` are of tokens and need not sum to one."""
    rng = Random(seed)
    names = [n for n, s in shares.items() if s > 0]
    weights = [shares[n] / mean_tokens(tokenizer, n) for n in names]
    while True:
        name = rng.choices(names, weights)[0]
        yield encode(tokenizer, draw(rng, name, held))


def take(samples: Iterator[Encoded], max_tokens: int) -> list[Encoded]:
    """Samples until `max_tokens` is reached or passed: batches differ by less than one sample."""
    out, total = [], 0
    while total < max_tokens:
        out.append(next(samples))
        total += len(out[-1].ids)
    return out


def pack(samples: list[Encoded], num_groups: int) -> Batch:
    """Lay samples end to end, shortest first, in `num_groups` groups of similar length for attention."""
    samples = sorted(samples, key=lambda s: len(s.ids))
    lengths = np.array([len(s.ids) for s in samples])
    starts = np.concatenate(([0], np.cumsum(lengths)))
    total = int(starts[-1])
    groups, flat, seen = [], np.empty(total, dtype=np.int64), 0
    for part in np.array_split(np.arange(len(samples)), min(num_groups, len(samples))):
        width = int(lengths[part].max())
        column = np.arange(width)
        inside = column[None] < lengths[part][:, None]
        index = starts[part][:, None] + column[None]
        groups.append(torch.from_numpy(np.where(inside, index, total)))
        flat[index[inside]] = seen + np.flatnonzero(inside.ravel())
        seen += inside.size
    tokens = np.concatenate([s.ids for s in samples])
    learn = np.flatnonzero(np.concatenate([s.learn for s in samples]))
    positions = np.concatenate([np.arange(n) for n in lengths])
    arrays = (tokens, positions, flat, learn, tokens[learn + 1])
    t, p, f, le, ta = (torch.from_numpy(np.ascontiguousarray(a, dtype=np.int64)) for a in arrays)
    return Batch(t, p, groups, f, le, ta)
