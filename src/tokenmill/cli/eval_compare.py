"""Two models on one text, through the engine: KL divergence, top-1 agreement, perplexities. A is the reference.

A and B may be one model with KV caches of two kinds: eval compare MODEL MODEL --kv-b int4
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING

from tokenmill.cli.measured import add_text_flags, opened, windows_of
from tokenmill.cli.options import add_engine_flags, kv_kind
from tokenmill.cli.parser import Parser
from tokenmill.cli.progress import progress

if TYPE_CHECKING:
    from tokenmill.eval.compare import Comparison


def add_arguments(parser: Parser) -> None:
    parser.add_argument("a", help="the reference: a folder, a hub name, or demo")
    parser.add_argument("b", help="the model that is compared with it")
    add_text_flags(parser)
    parser.add_argument("--kv-a", type=kv_kind, help="KV cache of A (default: as --quant-policy says)")
    parser.add_argument("--kv-b", type=kv_kind, help="KV cache of B")
    parser.add_argument("--max-kl", type=float, help="end with 1 where the KL is above")
    parser.add_switch("--json", "print the figures as JSON")
    add_engine_flags(parser)


async def measure(args: argparse.Namespace) -> Comparison:
    from tokenmill.eval.compare import compare, read_reference

    windows = windows_of(args, args.a)
    async with opened(args, args.a, args.kv_a) as a:
        with progress("A", "windows") as show:
            reference = await read_reference(a.engine, windows, show)
    async with opened(args, args.b, args.kv_b) as b:
        with progress("B", "windows") as show:
            return await compare(b.engine, reference, show)


def run(args: argparse.Namespace) -> int:
    found = asyncio.run(measure(args))
    if args.json:
        print(json.dumps(found.facts()))
    else:
        print(f"KL {found.kl:.6f} nats  top-1 {found.top1:.2%}  perplexity {found.perplexity:.4f} "
              f"against {found.perplexity_reference:.4f}  tokens {found.tokens}")  # fmt: skip
    return int(args.max_kl is not None and not found.kl <= args.max_kl)
