"""Chat with a model in the terminal: `tokenmill chat MODEL`, also `tokenmill chat turbomind MODEL`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill import env
from tokenmill.cli.engine import add_model_flags, open_engine
from tokenmill.cli.options import add_engine_flags, note
from tokenmill.cli.parser import Parser
from tokenmill.errors import ConfigError

if TYPE_CHECKING:
    from tokenmill.api.contract import TextEngine
    from tokenmill.serve.ui.conversation import Conversation

ENGINE_WORDS = ("turbomind", "torch", "pytorch")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", nargs="+", metavar="MODEL", help="a folder, a hub name, or demo")
    add_model_flags(parser)
    add_terminal_flags(parser)
    parser.add_argument("--session-id", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cap", help=argparse.SUPPRESS)
    parser.add_argument("--stream-output", nargs="?", help=argparse.SUPPRESS)
    add_engine_flags(parser)


def add_terminal_flags(parser: Parser) -> None:
    group = parser.add_argument_group("conversation")
    group.add_argument("--system", "--meta-instruction", default="", help="the system message")
    for name, kind in (("temperature", float), ("top-p", float), ("top-k", int), ("repetition-penalty", float),
                       ("max-new-tokens", int), ("seed", int)):  # fmt: skip
        group.add_argument(f"--{name}", type=kind, help="see /set in the chat")


def history_file() -> Path:
    return env.cache_dir() / "chat-history"


def conversation_of(args: argparse.Namespace, engine: TextEngine | None = None) -> Conversation:
    """An empty conversation with the settings of the command line, then the model's own, then LMDeploy's."""
    from dataclasses import asdict, replace

    from tokenmill.serve.ui.conversation import BOUNDS, Conversation, Settings, with_setting

    own = asdict(engine.defaults) if engine else {}
    settings = replace(Settings(), **{name: own[name] for name in BOUNDS if own.get(name) is not None})
    for name in BOUNDS:
        if getattr(args, name) is not None:
            settings = with_setting(settings, name, str(getattr(args, name)))
    return Conversation(system=args.system, settings=settings)


def model_of(words: list[str]) -> str:
    """The model's path; the first generation put the engine's name before it."""
    if len(words) == 2 and words[0] in ENGINE_WORDS:
        note(f"'chat {words[0]} MODEL' is now 'chat MODEL': there is one engine")
        return words[1]
    if len(words) != 1:
        raise ConfigError(f"chat takes one model, not {len(words)}: {' '.join(words)}")
    return words[0]


async def chat(args: argparse.Namespace) -> None:
    from tokenmill.serve.ui.talk import EngineTalk
    from tokenmill.serve.ui.terminal import Terminal, open_reader

    engine = await open_engine(args, model_of(args.model))
    try:
        terminal = Terminal(EngineTalk(engine), open_reader(history_file()), sys.stdout, conversation_of(args, engine))
        await terminal.run()
    finally:
        await engine.close()


def run(args: argparse.Namespace) -> int:
    asyncio.run(chat(args))
    return 0
