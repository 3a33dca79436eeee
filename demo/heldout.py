"""The held-out items: `python -m demo.heldout FILE.jsonl.gz` writes them; `measure` asks a training model all of
them.

Contract: the same seed gives the same bytes. Items of `arithmetic`, `recall`, `tools` and `objects` are drawn from
the held-out tenth of their key space (`sample.is_held_out`), from which training never draws; those of `ending` are
requests for stories and small talk, of which only the animal and the food of a short story are held out: they test
the stop.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from demo import data
from demo.sample import PLUGIN, Sample
from demo.sets import chat, stories
from tokenmill.eval.tasks.demo_sets import SETS, DemoItem

PER_SET = 200
SEED = 20_240_117


def two_digits(sample: Sample) -> bool:
    return all(10 <= n <= 99 for n in sample.expect["operands"])


def three_turns(sample: Sample) -> bool:
    """Told over several turns: at least three user turns, the asked value not in the last but one alone."""
    return sum(m["role"] == "user" for m in sample.messages) >= 3


def talk(rng: Random, held: bool) -> Sample:
    """What `ending` asks: stories, fairy tales, small talk."""
    kind = rng.random()
    if kind < 0.4:
        sample, low, high = stories.short(rng, held, zh=rng.random() < 0.55), 40, 450
    elif kind < 0.75:
        zh = rng.random() < 0.7
        # "About 300 characters" in Chinese; an English tale of nine sentences has about twice as many letters.
        (low, high), sample = ((200, 400) if zh else (300, 900)), stories.tale(rng, zh)
    else:
        sample, low, high = chat.draw(rng, held), 2, 300
    return Sample("ending", sample.messages, {"min_chars": low, "max_chars": high})


RULES: dict[str, tuple[Callable[[Random, bool], Sample], Callable[[Sample], bool]]] = {
    "arithmetic": (data.SETS["arithmetic"], two_digits),
    "recall": (data.SETS["recall"], three_turns),
    "tools": (data.SETS["tools"], lambda _: True),
    "objects": (data.SETS["objects"], lambda _: True),
    "ending": (talk, lambda _: True),
}


def to_item(sample: Sample, name: str) -> DemoItem:
    """The conversation up to its last answer; the list of functions is the server's to write."""
    last = max(i for i, m in enumerate(sample.messages) if m["role"] == "assistant")
    messages = [m for m in sample.messages[:last] if m.get("name") != PLUGIN]
    return DemoItem(name, messages, sample.expect, sample.tools)


def items(seed: int = SEED, per_set: int = PER_SET) -> Iterator[DemoItem]:
    """`per_set` different items of every set."""
    for name in SETS:
        rng, (draw, wanted) = Random(f"{seed}/{name}"), RULES[name]
        seen: set[str] = set()
        while len(seen) < per_set:
            sample = draw(rng, True)
            item = to_item(data.with_system(rng, sample), name)
            text = json.dumps(item.messages)
            if wanted(sample) and text not in seen:
                seen.add(text)
                yield item


def packed(found: Iterator[DemoItem]) -> bytes:
    """The file's bytes: no time and no name inside, so that they depend on the items alone."""
    lines: list[dict[str, Any]] = [asdict(item) for item in found]
    return gzip.compress("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines).encode(), 9, mtime=0)


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m demo.heldout FILE.jsonl.gz", file=sys.stderr)
        return 2
    content = packed(items())
    Path(argv[0]).write_bytes(content)
    print(f"{argv[0]}: {PER_SET} items of each of {', '.join(SETS)}, {len(content)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
