"""The built-in model from end to end: memory plan, chat in two languages, server, OpenAI client, speed. Ends with 0."""

from __future__ import annotations

import argparse
import asyncio
import time

from tokenmill.cli.options import add_engine_flags
from tokenmill.cli.parser import Parser

NEXT = """\
What to do next:
  tokenmill chat {model}                     chat in this terminal
  tokenmill serve api_server {model}         serve it on port 23333, with a page at /
  tokenmill chat /path/to/a/model         any Llama or InternLM2 folder
  tokenmill plan /path/to/a/model         what fits into memory
(./run takes the place of tokenmill in a checkout: ./run chat {model})"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", default="demo", help="another model to show (default: demo)")
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


def run(args: argparse.Namespace) -> int:
    from tokenmill.cli.demo_server import show_server
    from tokenmill.cli.plan import plan_of

    started = time.perf_counter()
    title("Memory plan")
    print(plan_of(args.model, batch=8, contexts=(512, 2048)))
    title("Loading")
    asyncio.run(show_chats(args))
    title("Server and OpenAI client")
    show_server(args.model)
    title(f"Done in {time.perf_counter() - started:.1f} s")
    print(NEXT.format(model=args.model))
    return 0
