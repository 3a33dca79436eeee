"""Chat in the terminal with a running server. URL may lack http:// and /v1; 0.0.0.0 means this machine."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tokenmill import env
from tokenmill.cli.chat import add_terminal_flags, conversation_of, history_file
from tokenmill.cli.legacy import add_ignored, note
from tokenmill.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument("url", help="address of the server, such as http://localhost:23333")
    parser.add_argument("--api-key", help="the server's key; TOKENMILL_API_KEYS is read as well")
    parser.add_argument("--model-name", help="which of the server's models; the first by default")
    add_ignored(parser, {"--session-id": "the whole conversation is sent with every turn"})
    add_terminal_flags(parser)


async def chat(args: argparse.Namespace) -> None:
    from tokenmill.serve.ui.talk import HttpTalk
    from tokenmill.serve.ui.terminal import Terminal, open_reader

    talk = HttpTalk(args.url, args.api_key or next(iter(env.api_keys()), None), args.model_name)
    try:
        await talk.connect()
        await Terminal(talk, open_reader(history_file()), sys.stdout, conversation_of(args)).run()
    finally:
        await talk.close()


def run(args: argparse.Namespace) -> int:
    if "://" not in args.url:
        note(f"taking http://{args.url}")
    asyncio.run(chat(args))
    return 0
