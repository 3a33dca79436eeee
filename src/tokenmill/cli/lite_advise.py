"""Which form of a model to serve here: plain, quantized KV cache, 4-bit weights, or both, measured on your text.

--text is your kind of text, --prompts your prompts with what right answers hold, as JSON lines:
{"prompt": .., "expect": ..}. The plain model is measured first; where it fails your check itself, no quantization will
help, and that is said first.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from tokenmill.cli.advise_trials import Bench, report, run_trials
from tokenmill.cli.legacy import note
from tokenmill.cli.measured import add_text_flags, windows_of
from tokenmill.cli.options import add_engine_flags, num_bytes, positive
from tokenmill.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", help="a folder, a hub name, or demo")
    add_text_flags(parser)
    parser.add_argument("--prompts", type=Path, help="a txt file, a prompt a line, or jsonl with checks")
    parser.add_argument("--max-kl", type=float, default=0.05, help="most KL divergence from the plain model, in nats")
    parser.add_argument("--min-pass", type=float, default=0.8, help="share of right answers the plain model must reach")
    parser.add_argument("--max-perplexity", type=float, help="perplexity on --text the plain model must stay below")
    parser.add_argument("--memory", "--gpu-memory", type=num_bytes, help="such as 24GiB; this machine's by default")
    parser.add_argument("--batch", type=positive, default=8, help="sequences that must fit at once")
    parser.add_argument("--context", type=positive, default=2048, help="their tokens, output included")
    parser.add_argument("--output-tokens", type=positive, default=256, help="how long answers usually are")
    parser.add_argument("--max-new-tokens", type=positive, default=64, help="tokens of a measured answer")
    parser.add_argument("--work-dir", type=Path, default=Path("./advise"), help="where the 4-bit copy is kept")
    parser.add_argument("--w-group-size", type=int, default=128, help="of the 4-bit copy")
    parser.add_argument("--calib-samples", type=positive, default=32, help="of the 4-bit copy")
    parser.add_argument("--calib-seqlen", type=positive, default=512, help="of the 4-bit copy")
    parser.add_switch("--fast", "a faster, coarser search for the 4-bit copy")
    parser.add_switch("--fresh", "make the 4-bit copy again")
    add_engine_flags(parser)


def needs_of(args: argparse.Namespace) -> tuple[int, bool]:
    """Bytes of memory, and whether there is a GPU."""
    from tokenmill.cli.lite import device_of
    from tokenmill.cli.plan import device_bytes

    gpu = args.engine_kernels_device != "cpu" and device_of("auto") == "cuda"
    return args.memory or device_bytes(), gpu


def run(args: argparse.Namespace) -> int:
    from tokenmill.eval.advise import Needs
    from tokenmill.eval.prompts import Prompt, read_prompts

    memory, gpu = needs_of(args)
    needs = Needs(
        args.batch * args.context, args.output_tokens, gpu, args.max_kl, args.min_pass, args.max_perplexity
    )
    windows = windows_of(args, args.model)
    if args.prompts:
        prompts = read_prompts(args.prompts)
    else:
        note("no --prompts: answers are not judged, only timed")
        prompts = [Prompt(ids=window[:32]) for window in windows[:4]]
    found = asyncio.run(run_trials(Bench(args, windows, prompts, memory), needs))
    print(report(found, needs))
    return 0
