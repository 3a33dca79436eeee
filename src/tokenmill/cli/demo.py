"""The built-in model from end to end: memory plan, chat in two languages, a 4-bit copy, both served. Ends with 0."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from tokenmill.cli.options import add_engine_flags
from tokenmill.cli.parser import Parser

NEXT = """\
What to do next:
  tokenmill chat {model}                     chat in this terminal
  tokenmill serve api_server {model}         serve it on port 23333, with a page at /
  tokenmill chat /path/to/a/model         any Llama or InternLM2 folder
  tokenmill plan /path/to/a/model         what fits into memory
  tokenmill lite advise /path/to/a/model  which quantized form to serve here
(./run takes the place of tokenmill in a checkout: ./run chat {model})"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", default="demo", help="another model to show (default: demo)")
    parser.add_switch("--fresh", "make the 4-bit copy again, which is otherwise kept and reused")
    add_engine_flags(parser)


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)


async def show_chats(args: argparse.Namespace) -> None:
    from tokenmill.cli.demo_chats import SCENES, Totals, play
    from tokenmill.cli.engine import open_engine

    started = time.perf_counter()
    engine = await open_engine(args, args.model)
    print(f"{engine.name} is loaded after {time.perf_counter() - started:.1f} s")
    totals = Totals()
    try:
        for scene in SCENES:
            title(scene.title)
            await play(engine, scene, totals)
        title("Speed, one conversation at a time")
        print(totals)
    finally:
        await engine.close()


def quantized(args: argparse.Namespace) -> Path | None:
    """The 4-bit copy, its report shown; None where the model is too large to wait for."""
    from tokenmill.api.hub import resolve_model
    from tokenmill.cli.demo_quantized import make_copy, show_report, small_enough

    source = resolve_model(args.model)
    if not small_enough(source):
        print(f"left out: {args.model} takes longer than a demo; see tokenmill lite advise {args.model}")
        return None
    folder: Path = make_copy(source, args.fresh)
    show_report(folder)
    return folder


def run(args: argparse.Namespace) -> int:
    from tokenmill.cli.demo_server import show_server
    from tokenmill.cli.plan import plan_of

    started = time.perf_counter()
    title("Memory plan")
    print(plan_of(args.model, batch=8, contexts=(512, 2048)))
    title("Loading")
    asyncio.run(show_chats(args))
    title("The same model in 4 bits")
    copy = quantized(args)
    title("Server and OpenAI client")
    show_server(args.model, copy)
    title(f"Done in {time.perf_counter() - started:.1f} s")
    print(NEXT.format(model=args.model))
    return 0
