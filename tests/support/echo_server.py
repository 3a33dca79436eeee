"""The real command line with no model behind it: an EchoEngine in place of what `api/build.py` would open.

    python -m tests.support.echo_server TOKENS_PER_S ROWS serve api_server demo --server-port 0 ...

Every answer repeats the user's last words, byte by byte, until it is as long as was asked for.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from types import ModuleType

from tests.support.echo import byte_tokenizer

from tokenmill.api.codec import Codec
from tokenmill.api.contract import SamplingDefaults, TextLimits
from tokenmill.api.parsers import parser_names
from tokenmill.api.prepare import end_of_text
from tokenmill.api.session import ServedModel, TextParts
from tokenmill.config import EngineConfig
from tokenmill.engine.echo import EchoEngine, EchoOptions
from tokenmill.tokenize.chat import internlm2
from tokenmill.tokenize.folder import TextFolder
from tokenmill.types import Request

USER = b"<|im_start|>user\n"
CONTEXT = 65_536


def repeat(request: Request) -> tuple[int, ...]:
    """The bytes of the last user turn, round and round. Special tokens (ids from 256) end a turn."""
    ids = list(request.prompt_ids)
    special = [place for place, token in enumerate(ids) if token >= 256]
    words = ids
    if len(special) > 2:
        words = ids[special[-3] + 1 : special[-2]][len(b"user\n") :]
    said = [token for token in words if token < 256] or [ord("?")]
    return tuple(islice(cycle(said), request.stop.max_new_tokens))


def open_echo(config: EngineConfig, tokens_per_s: float, rows: int) -> ServedModel:
    tokenizer = byte_tokenizer()
    template = replace(internlm2.TEMPLATE, meta_instruction=None)
    folder = TextFolder(Path("echo"), {"eos_token_id": tokenizer.vocabulary.eos_id}, {}, {}, {})
    size = tokenizer.vocabulary.size
    engine = EchoEngine(EchoOptions(repeat, tokens_per_s, max_rows=rows, max_model_tokens=CONTEXT, vocab_size=size))
    parts = TextParts(
        config.model.name or config.model.path, Codec(tokenizer, template, size), TextLimits(CONTEXT, size),
        end_of_text(folder, tokenizer, template), SamplingDefaults(), parser_names(None, None, tokenizer.vocabulary),
    )
    return ServedModel(engine, parts)


def main(arguments: list[str]) -> int:
    tokens_per_s, rows = float(arguments[0]), int(arguments[1])

    async def open_text_engine(config: EngineConfig) -> ServedModel:
        return open_echo(config, tokens_per_s, rows)

    build = ModuleType("tokenmill.api.build")
    build.open_text_engine = open_text_engine  # type: ignore[attr-defined]
    sys.modules["tokenmill.api.build"] = build
    from tokenmill.cli.main import main as command

    return command(arguments[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
