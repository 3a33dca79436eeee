"""The built-in model's held-out sets: right answers of each, beside the goal. Ends with 1 where --strict misses one."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from tokenmill.cli.options import add_engine_flags, positive
from tokenmill.cli.parser import Parser
from tokenmill.cli.progress import progress
from tokenmill.cli.table import table

if TYPE_CHECKING:
    from tokenmill.eval.run_demo import Score


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", default="demo", help="demo, or a folder trained on the same sets")
    parser.add_argument("--limit", type=positive, help="only so many items of each set")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print of each set")
    parser.add_switch("--strict", "end with 1 where a goal is missed")
    add_engine_flags(parser)


async def measure(args: argparse.Namespace) -> list[Score]:
    from tokenmill.cli.engine import open_engine
    from tokenmill.eval.run_demo import run_demo
    from tokenmill.eval.tasks.demo_sets import SETS, load_items

    with as_file(files("tokenmill") / "demo_model" / "heldout.jsonl.gz") as path:
        items = load_items(path)
    if args.limit:
        items = [i for name in SETS for i in [x for x in items if x.set == name][: args.limit]]

    engine = await open_engine(args, args.model)
    try:
        with progress("held-out sets", "answers") as show:
            return await run_demo(engine, items, lambda done: show(done, len(items)), args.show)
    finally:
        await engine.close()


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    scores = asyncio.run(measure(args))
    rows = [(s.name, str(s.right), str(s.total), f"{s.share:.1%}", f"{s.goal:.0%}",
             "yes" if s.share >= s.goal else "no", f"{s.ended / s.total:.1%}") for s in scores]  # fmt: skip
    print(table(("set", "right", "of", "share", "goal", "reached", "ended by itself"), rows))
    for score in scores:
        for item, answer in score.wrong:
            print(f"\n{score.name}: {json.dumps(item.messages, ensure_ascii=False)}\n  said: {answer!r}\n  expected: "
                  f"{json.dumps(item.expect, ensure_ascii=False)}")  # fmt: skip
    print(f"{time.perf_counter() - started:.1f} s")
    return int(args.strict and any(s.share < s.goal for s in scores))
