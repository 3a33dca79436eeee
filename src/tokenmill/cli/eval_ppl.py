"""Perplexity of a model on a text file, in strided windows."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from tokenmill.cli.options import add_engine_flags, positive
from tokenmill.cli.parser import Parser
from tokenmill.cli.progress import progress
from tokenmill.errors import FormatError


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", help="a folder, a hub name, or demo")
    parser.add_argument("--text", type=Path, required=True, help="a UTF-8 text file")
    parser.add_argument("--window", type=positive, help="tokens of a window (default: the context, at most 2048)")
    parser.add_argument("--stride", type=positive, help="tokens between windows (default: half a window)")
    parser.add_argument("--max-tokens", type=positive, help="only the first tokens of the text")
    add_engine_flags(parser)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read as UTF-8 text: {error}") from None


async def measure(args: argparse.Namespace) -> str:
    from tokenmill.cli.engine import open_engine
    from tokenmill.eval.perplexity import perplexity

    text = read_text(args.text)
    engine = await open_engine(args, args.model)
    try:
        ids = (await engine.codec.encode(text))[: args.max_tokens]
        window = args.window or min(engine.limits.max_model_tokens, 2048)
        stride = args.stride or max(window // 2, 1)
        started = time.perf_counter()
        with progress("perplexity", "windows") as show:
            found = await perplexity(engine.engine, ids, window, stride, show)
    finally:
        await engine.close()
    seconds = time.perf_counter() - started
    return (f"perplexity {found.value:.4f}  nll {found.nll:.5f}  tokens {found.tokens}  windows {found.windows}  "
            f"window {window}  stride {stride}  {seconds:.1f} s")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    print(asyncio.run(measure(args)))
    return 0
