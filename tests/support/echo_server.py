"""The real command line with no model behind it: a small engine in place of what `api/build.py` would start.

    python -m tests.support.echo_server ENGINE serve api_server demo --server-port 0 ...

ENGINE `echo[:TOKENS_PER_S]` repeats the user's last words, byte by byte, until the answer is as long as was asked for.
ENGINE `blocks` is the real scheduler with its block pool on a FakeRunner: 16 rows, 5 ms a step, 400 blocks, and texts
that are noise but the same for the same request, whatever else runs.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.support.echo import byte_tokenizer
from tokenmill.api.codec import Codec
from tokenmill.api.contract import SamplingDefaults, TextLimits
from tokenmill.api.parsers import parser_names
from tokenmill.api.prepare import end_of_text
from tokenmill.api.session import ServedModel, TextParts
from tokenmill.config import EngineConfig
from tokenmill.engine.client import start_engine
from tokenmill.engine.contract import Capacity, Engine, KVGroup
from tokenmill.engine.echo import EchoEngine, EchoOptions
from tokenmill.engine.fake import FakeRunner
from tokenmill.tokenize.chat import internlm2
from tokenmill.tokenize.folder import TextFolder
from tokenmill.types import Request

VOCAB = 264
CONTEXT = 4096


def repeat(request: Request) -> tuple[int, ...]:
    """The bytes of the last user turn, round and round. Ids from 256 are special: one opens a turn, one ends it."""
    ids = list(request.prompt_ids)
    special = [place for place, token in enumerate(ids) if token >= 256]
    words = ids
    if len(special) > 2:
        words = ids[special[-3] + 1 : special[-2]][len(b"user\n") :]
    said = [token for token in words if token < 256] or [ord("?")]
    return tuple(islice(cycle(said), request.stop.max_new_tokens))


def make_runner(config: EngineConfig) -> FakeRunner:
    group = KVGroup("full", layers=2, block_tokens=16, bytes_per_block=64, num_blocks=400)
    return FakeRunner(Capacity((group,), 16, 256, CONTEXT, VOCAB), latency_s=0.005)


async def make_engine(kind: str, config: EngineConfig) -> Engine:
    if kind == "blocks":
        return await start_engine("tests.support.echo_server:make_runner", config, own_process=False)
    pace = float(kind.partition(":")[2] or 0)
    return EchoEngine(EchoOptions(repeat, pace, max_rows=16, max_model_tokens=CONTEXT, vocab_size=VOCAB))


async def open_model(kind: str, config: EngineConfig, name: str | None) -> ServedModel:
    tokenizer = byte_tokenizer()
    assert tokenizer.vocabulary.size == VOCAB
    template = replace(internlm2.TEMPLATE, meta_instruction=None)
    folder = TextFolder(Path("echo"), {"eos_token_id": tokenizer.vocabulary.eos_id}, {}, {}, {})
    parts = TextParts(
        name or config.model.path, Codec(tokenizer, template, VOCAB), TextLimits(CONTEXT, VOCAB),
        end_of_text(folder, tokenizer, template), SamplingDefaults(), parser_names(None, None, tokenizer.vocabulary),
    )
    return ServedModel(await make_engine(kind, config), parts)


def main(arguments: list[str]) -> int:
    kind = arguments[0]

    async def open_text_engine(config: EngineConfig, *, name: str | None = None, **rest: Any) -> ServedModel:
        return await open_model(kind, config, name)

    build = ModuleType("tokenmill.api.build")
    build.open_text_engine = open_text_engine  # type: ignore[attr-defined]
    sys.modules["tokenmill.api.build"] = build
    from tokenmill.cli.main import main as command

    return command(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
