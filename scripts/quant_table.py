#!/usr/bin/env python3
"""The quality table: our methods and other packages on one model, on the same calibration ids and held-out windows.

    python scripts/outlier_model.py FOLDER
    PYTHONPATH=src:. python scripts/quant_table.py FOLDER [--peers VENV] [--bits 4 3] [--seeds 0 1 2] [--kv]

Groups of 128, asymmetric. KL is of the quantized model from FOLDER, the mean over all positions of the held windows;
a folder that a package wrote is read by Tokenmill's own readers. A package that fails leaves a row with its last line.
Figures are kept in the file of --out as they come; a second run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenmill.errors import TokenmillError
from tokenmill.kv.quantize import dequantize, quantize
from tokenmill.kv.rotate import rotate
from tokenmill.models.spec import read_arch
from tokenmill.quant.block import Block, block_facts, read_block
from tokenmill.quant.measure import Quality, quality
from tokenmill.quant.method import Feed, load_method
from tokenmill.quant.methods import awq, gptq, rtn
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.scaling import apply, moves
from tokenmill.quant.search import weight_means
from tokenmill.quant.stats import Magnitudes
from tokenmill.quant.streams import begin, ending
from tokenmill.quant.text import Tokens
from tokenmill.weights.source import open_folder

Change = Callable[[Block, Feed, int], object]
GROUP, SEARCH_TOKENS = 128, 4096
OURS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "lmdeploy default": {"method": "lmdeploy"},
    "awq": {"method": "awq"},
    "gptq, as columns lie": {"method": "gptq", "order": "none"},
    "gptq, act-order": {"method": "gptq"},
    "awq+gptq, not refined": {"method": "awq_gptq", "refine": False},
    "awq+gptq": {"method": "awq_gptq"},
}
PEERS = ("llmcompressor", "gptqmodel", "auto-round")
WITHOUT_DATA = ("rtn",)
PEER_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Case:
    """One row of one seed."""

    name: str
    bits: int
    seed: int

    @property
    def key(self) -> str:
        return f"{self.name}|{self.bits}|{self.seed}"


@dataclass(frozen=True, slots=True)
class Bench:
    """What all rows share."""

    folder: Path
    samples: int
    window: int
    held: int
    peers: Path | None

    def tokens(self, seed: int) -> Tokens:
        drawn = _windows(self.folder / f"calib-{seed}.npy", self.samples, self.window)
        return Tokens(drawn, _windows(self.folder / "held.npy", self.held, self.window), "given", seed)


def _windows(path: Path, count: int, size: int) -> tuple[tuple[int, ...], ...]:
    ids = np.load(path)[: count * size].reshape(count, size)
    return tuple(tuple(row.tolist()) for row in ids)


@torch.inference_mode()
def walk(folder: Path, tokens: Tokens, change: Change) -> Quality:
    """The quality after every block was changed; `change` may do to a block what it wants."""
    family, arch = read_arch(folder)
    source, facts, device = open_folder(folder), block_facts(family, arch), torch.device("cpu")
    streams = begin(family, arch, source, tokens, device)
    for index in range(arch.num_layers):
        block = read_block(facts, source, index)
        feed = streams.feed()
        streams.pass_plain(block)
        change(block, feed, index)
        streams.pass_quantized(block)
    held = slice(streams.samples, None)
    ids = [torch.tensor(window) for window in tokens.held]
    end = ending(family, arch, source, device)
    found = quality(end, streams.plain[held], streams.quantized[held], ids)
    assert found is not None
    return found


def ours(case: Case, scaled: Scaled) -> Change:
    recipe = OURS[case.name]
    if recipe["method"] == "lmdeploy":
        return lambda block, feed, index: lmdeploy(block, feed, Recipe("rtn", bits=case.bits, group=GROUP))
    made = Recipe(**recipe, bits=case.bits, group=GROUP, search_tokens=SEARCH_TOKENS)
    if made.method in ("awq", "awq_gptq"):
        return lambda block, feed, index: finish(block, feed, made, (scaled, case, index))
    method = load_method(made.method)
    return lambda block, feed, index: method.quantize(block, feed, made)


class Scaled:
    """Blocks behind AWQ's search, which looks at the plain model only: searched once for all rows of a seed."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, int, int], tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = {}

    def put(self, block: Block, feed: Feed, recipe: Recipe, at: tuple[int, int, int]) -> None:
        if at not in self.held:
            awq.scale(block, feed, recipe)
            self.held[at] = dict(block.linears), dict(block.vectors)
        block.linears, block.vectors = (dict(part) for part in self.held[at])


def finish(block: Block, feed: Feed, recipe: Recipe, at: tuple[Scaled, Case, int]) -> None:
    """What `methods/awq.py` and `methods/awq_gptq.py` do, with the search's result from `at`."""
    scaled, case, index = at
    scaled.put(block, feed, recipe, (case.bits, case.seed, index))
    if recipe.method == "awq":
        awq.clip(block, feed, recipe)
        rtn.quantize(block, feed, recipe)
    else:
        gptq.quantize(block, feed, replace(recipe, refine=recipe.refine is not False))


def lmdeploy(block: Block, feed: Feed, recipe: Recipe) -> None:
    """What LMDeploy's `auto_awq` does by default: scales max|x|^0.5 / w^0.5, no search, no clip, v -> o left out."""
    found, residuals = {}, feed.plain
    for move in moves(block.facts):
        if move.site == "gate_up":
            residuals = [block.advance("out", residual) for residual in residuals]
        if move.site == "out":
            continue
        linears = [block.linears[name] for name in move.linears]
        seen = Magnitudes(linears[0].shape[1])
        for residual in residuals:
            seen.add(block.site_input(move.site, residual))
        scales = (seen.largest / weight_means(linears, recipe.group).clamp(min=1e-4)).sqrt().clamp(min=1e-4)
        found[move] = scales / (scales.max() * scales.min()).sqrt()
    for move, scales in found.items():
        apply(block, move, scales)
    rtn.quantize(block, feed, recipe)


def peer(bench: Bench, case: Case) -> Quality:
    """RuntimeError holds the last line that a package said before it failed."""
    with tempfile.TemporaryDirectory() as work:
        made = Path(work) / "made"
        run_peer(bench, case, made)
        return walk(bench.folder, bench.tokens(case.seed), swapped(made))


def run_peer(bench: Bench, case: Case, made: Path) -> None:
    assert bench.peers is not None
    line = [
        str(bench.peers / "bin" / "python"), str(Path(__file__).with_name("quant_peers.py")), "make", case.name,
        str(bench.folder), str(made), "--ids", str(bench.folder / f"calib-{case.seed}.npy"), "--bits", str(case.bits),
        "--samples", str(bench.samples), "--window", str(bench.window),
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=PEER_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1][-300:])


def swapped(made: Path) -> Change:
    """Puts the blocks of a quantized folder in place of the source's."""
    family, arch = read_arch(made)
    source, facts = open_folder(made), block_facts(family, arch)

    def change(block: Block, feed: Feed, index: int) -> None:
        other = read_block(facts, source, index)
        block.linears, block.vectors = other.linears, other.vectors

    return change


def kv_rows() -> dict[str, Change]:
    """Caches by their codes and params, as `kv/` makes them; rotated int8 is no kind of the engine."""
    rows = {}
    for name, levels, turned in (("kv int8", 255, False), ("kv int8, rotated", 255, True),
                                 ("kv int4, plain", 15, False), ("kv int4, rotated", 15, True)):  # fmt: skip
        rows[name] = cached(levels, turned)
    return rows


def cached(levels: int, turned: bool) -> Change:
    def keep(x: torch.Tensor) -> torch.Tensor:
        held = dequantize(*quantize(rotate(x) if turned else x, levels))
        return rotate(held) if turned else held

    def change(block: Block, feed: Feed, index: int) -> None:
        heads = block.heads

        def through(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            q, k, v = heads(x)
            return q, keep(k), keep(v)

        block.heads = through  # type: ignore[method-assign]

    return change


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Rows that a seed changes nothing in have the first only."""
    if args.kv:
        yield from (Case(name, 0, args.seeds[0]) for name in kv_rows())
    names = args.only or (*OURS, *(PEERS if args.peers else ()))
    for bits in args.bits:
        for number, seed in enumerate(args.seeds):
            yield from (Case(name, bits, seed) for name in names if not number or name not in WITHOUT_DATA)


def measure(bench: Bench, case: Case, scaled: Scaled) -> dict[str, Any]:
    started = time.time()
    try:
        if case.name in PEERS:
            found = peer(bench, case)
        else:
            change = kv_rows()[case.name] if not case.bits else ours(case, scaled)
            found = walk(bench.folder, bench.tokens(case.seed), change)
    except (RuntimeError, TokenmillError, subprocess.TimeoutExpired) as error:
        return {"failed": f"{type(error).__name__}: {error}"[-300:]}
    return found.facts() | {"seconds": round(time.time() - started, 1)}


def table(told: dict[str, dict[str, Any]]) -> str:
    """Means over seeds; KL with the smallest and the largest."""
    lines = ["| row | bits | KL | least .. most | top-1 | perplexity | seeds |", "|---|---|---:|---|---:|---:|---:|"]
    for name, bits in dict.fromkeys(tuple(key.split("|")[:2]) for key in told):
        rows = [row for key, row in told.items() if key.split("|")[:2] == [name, bits]]
        good = [row for row in rows if "kl" in row]
        if not good:
            lines.append(f"| {name} | {bits} | {rows[0]['failed']} | | | | |")
            continue
        kl, top1, ppl = (np.mean([row[k] for row in good]) for k in ("kl", "top1", "perplexity_quantized"))
        span = f"{min(row['kl'] for row in good):.5f} .. {max(row['kl'] for row in good):.5f}"
        lines.append(f"| {name} | {bits or ''} | {kl:.5f} | {span} | {top1:.2%} | {ppl:.2f} | {len(good)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", type=Path, help="a virtual environment that has the other packages")
    parser.add_argument("--bits", type=int, nargs="*", default=[4, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--held", type=int, default=16, help="windows")
    parser.add_argument("--kv", action="store_true", help="also caches, on the plain weights")
    parser.add_argument("--only", nargs="+", choices=(*OURS, *PEERS), help="rows (default: all that can be made)")
    parser.add_argument("--out", type=Path, default=Path("out/quant_table.json"))
    args = parser.parse_args()
    bench = Bench(args.folder, args.samples, args.window, args.held, args.peers)
    told = json.loads(args.out.read_text()) if args.out.exists() else {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    scaled = Scaled()
    for case in cases(args):
        if case.key not in told:
            told[case.key] = measure(bench, case, scaled)
            args.out.write_text(json.dumps(told, indent=1))
            print(case.key, json.dumps(told[case.key]), flush=True)
    print(table(told))


if __name__ == "__main__":
    main()
