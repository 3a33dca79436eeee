"""A web page to chat with a model, or with a running server: `tokenmill serve gradio MODEL` or `... gradio URL`.

Needs gradio: pip install 'tokenmill[ui]'. Every `serve api_server` has a page of its own at /ui, without it.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill import env
from tokenmill.cli.engine import add_model_flags, open_engine
from tokenmill.cli.legacy import Later, add_ignored, add_later, note
from tokenmill.cli.options import add_engine_flags
from tokenmill.cli.parser import Parser

if TYPE_CHECKING:
    from tokenmill.serve.ui.conversation import Talk

IGNORED = {"--batch-size": "batches form by themselves; --max-batch-size limits them"}
NOT_SERVED = {"--share": Later("a public link goes through another company's servers", ("false", "False", "0"))}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL_OR_URL", help="a folder, a hub name, demo, or a server's address")
    parser.add_argument("--server-name", default="0.0.0.0", help="address to listen on (default: %(default)s)")
    parser.add_argument("--server-port", type=int, default=6006, help="0 takes any free port (default: %(default)s)")
    parser.add_argument("--api-key", help="the key of the server at URL; TOKENMILL_API_KEYS is read as well")
    parser.switches.add("--share")
    add_later(parser, NOT_SERVED)
    add_ignored(parser, IGNORED)
    add_model_flags(parser)
    add_engine_flags(parser)


def is_address(text: str) -> bool:
    """LMDeploy's rule: a colon makes it a server's address."""
    return ":" in text and not Path(text).exists()


async def open_talk(args: argparse.Namespace) -> Talk:
    from tokenmill.serve.ui.talk import EngineTalk, HttpTalk

    if not is_address(args.model):
        return EngineTalk(await open_engine(args, args.model))
    key = args.api_key or next(iter(env.api_keys()), None)
    if key:
        note("whoever can open this page uses the server's key")
    talk = HttpTalk(args.model, key, args.model_name)
    await talk.connect()
    return talk


async def serve(args: argparse.Namespace) -> None:
    from tokenmill.serve.ui.playground import serve_page

    talk = await open_talk(args)
    try:
        await serve_page(talk, args.server_name, args.server_port)
    finally:
        await talk.close()


def run(args: argparse.Namespace) -> int:
    from tokenmill.serve.ui.playground import check_installed

    check_installed()
    asyncio.run(serve(args))
    return 0
