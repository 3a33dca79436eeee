"""What `eval compare` and `lite advise` share: the text two models are measured on, and engines that are opened for it.

Verbs have `--text`, `--window` and `--max-tokens` from `add_text_flags`.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill.cli.legacy import note
from tokenmill.cli.options import engine_config, positive
from tokenmill.cli.parser import Parser

if TYPE_CHECKING:
    from tokenmill.api.contract import TextEngine
    from tokenmill.eval.compare import Windows


def add_text_flags(parser: Parser) -> None:
    parser.add_argument("--text", type=Path, help="a txt, md, jsonl, parquet or npy file of your own kind of text "
                        "(default: Python's documentation)")  # fmt: skip
    parser.add_argument("--window", type=positive, default=512, help="tokens of a window")
    parser.add_argument("--max-tokens", type=positive, default=2048, help="tokens of the text that are measured")


def windows_of(args: argparse.Namespace, model: str) -> Windows:
    """The windows that both sides run, in the tokens of `model`."""
    from tokenmill.api.hub import resolve_model
    from tokenmill.eval.compare import cut
    from tokenmill.quant.text import OWN, text_ids
    from tokenmill.tokenize.loader import load_tokenizer

    if args.text is None:
        note("no --text: measuring on Python's documentation; text of your own kind says more")
    tokenizer = load_tokenizer(resolve_model(model))
    ids = text_ids(
        str(args.text or OWN), lambda text: tokenizer.encode(text, add_special_tokens=False), args.max_tokens
    )
    return cut(ids.tolist(), args.window, args.max_tokens)


@asynccontextmanager
async def opened(args: argparse.Namespace, model: str, kv: str | None) -> AsyncIterator[TextEngine]:
    """A model with a KV cache of a kind (None: as the flags say), closed at the end."""
    from tokenmill.api.build import open_text_engine

    config = engine_config(args, model)
    if kv is not None:
        config = replace(config, cache=replace(config.cache, kv=kv))
    engine: TextEngine = await open_text_engine(config)
    try:
        yield engine
    finally:
        await engine.close()
