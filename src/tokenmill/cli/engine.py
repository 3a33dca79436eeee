"""Opens a text engine from a parsed command line: the one place where verbs meet `api/build.py`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tokenmill import log
from tokenmill.cli.options import engine_config
from tokenmill.cli.parser import Parser
from tokenmill.cli.told import tell

if TYPE_CHECKING:
    from tokenmill.api.contract import TextEngine

LOG_LEVELS = ("CRITICAL", "FATAL", "ERROR", "WARN", "WARNING", "INFO", "DEBUG", "NOTSET")


def add_model_flags(parser: Parser) -> None:
    """Names and texts around the model, shared by chat and servers."""
    group = parser.add_argument_group("model")
    group.add_argument("--model-name", help="the name it is served under (default: the path as typed)")
    group.add_argument("--chat-template", help="a builtin name (tokenmill list) or a JSON file")
    group.add_argument("--tool-call-parser", help="dialect of tool calls; the family's own by default")
    group.add_argument("--reasoning-parser", help="dialect of reasoning; none by default")
    group.add_argument("--generation-config", metavar="auto|lmdeploy|PATH", help="where unsaid sampling values come "
                       "from: generation_config.json of the model (auto) or of PATH, or none (lmdeploy)")  # fmt: skip
    group.add_argument("--log-level", type=str.upper, choices=LOG_LEVELS, help="what goes to stderr")


async def open_engine(args: argparse.Namespace, path: str) -> TextEngine:
    """The served model at `path`, with the flags of `args`."""
    from tokenmill.api.build import open_text_engine

    log.configure(getattr(args, "log_level", None))
    engine: TextEngine = await open_text_engine(engine_config(args, path), **text_options(args))
    # What the runner decided; only engines that were started by `engine/client.py` know.
    tell(engine.name, getattr(engine.engine, "about", {}))
    return engine


def text_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `open_text_engine` is told beside the engine's config; verbs without `add_model_flags` tell nothing."""
    asked = {
        "name": getattr(args, "model_name", None),
        "chat_template": getattr(args, "chat_template", None),
        "tool_call_parser": getattr(args, "tool_call_parser", None),
        "reasoning_parser": getattr(args, "reasoning_parser", None),
        "generation_config": getattr(args, "generation_config", None),
    }
    return {name: value for name, value in asked.items() if value is not None}
