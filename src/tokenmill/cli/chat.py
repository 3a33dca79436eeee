"""Chat with a model in the terminal: `tokenmill chat MODEL`, also `tokenmill chat turbomind MODEL`.

An empty line ends your input, `exit` leaves, `end` starts afresh, /help lists the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill import env
from tokenmill.cli.engine import add_model_flags, open_engine
from tokenmill.cli.legacy import add_ignored, note
from tokenmill.cli.options import add_engine_flags
from tokenmill.cli.parser import Parser
from tokenmill.errors import ConfigError

if TYPE_CHECKING:
    from tokenmill.api.contract import TextEngine
    from tokenmill.serve.ui.conversation import Conversation

ENGINE_WORDS = ("turbomind", "torch", "pytorch")
IGNORED = {
    "--session-id": "the whole conversation is sent with every turn",
    "--tokenizer-path": "the tokenizer lies in the model's folder",
    "--accel": "there is one engine",
    "--max-alloc": "memory is planned: --cache-max-entry-count",
    "--adapter": "the family is known from config.json",
    "--log-file": "set TOKENMILL_LOG_FILE",
}
IGNORED_SWITCHES = {
    "--stream-output": "answers always stream",
    "--use-fast-tokenizer": "there is one tokenizer",
    "--debug": "use --log-level debug",
}
CAPS = ("chat", "completion", "infilling", "python")


def rewrite(argv: list[str]) -> list[str]:
    """The first generation put the engine's name before the model."""
    return ["--engine-word", *argv] if argv and argv[0] in ENGINE_WORDS else argv


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder, a hub name, or demo")
    parser.add_argument("--engine-word", choices=ENGINE_WORDS, help=argparse.SUPPRESS)
    parser.add_argument("--cap", choices=CAPS, default="chat", help=argparse.SUPPRESS)
    add_model_flags(parser)
    add_terminal_flags(parser)
    add_ignored(parser, IGNORED, IGNORED_SWITCHES)
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


def check(args: argparse.Namespace) -> None:
    """Says what the first generation's words mean now. Raises ConfigError for what is not served."""
    if args.engine_word:
        note(f"'chat {args.engine_word} MODEL' is now 'chat MODEL': there is one engine")
    if args.cap in ("completion", "infilling"):
        raise ConfigError(f"--cap {args.cap} is not served: chat is; /v1/completions of a server completes plain text")


async def chat(args: argparse.Namespace) -> None:
    from tokenmill.serve.ui.talk import EngineTalk
    from tokenmill.serve.ui.terminal import Terminal, open_reader

    engine = await open_engine(args, args.model)
    try:
        # The first generation showed the prompt as the model gets it.
        talk = EngineTalk(engine, shows_prompt=args.engine_word == "turbomind")
        await Terminal(talk, open_reader(history_file()), sys.stdout, conversation_of(args, engine)).run()
    finally:
        await engine.close()


def run(args: argparse.Namespace) -> int:
    check(args)
    asyncio.run(chat(args))
    return 0
