"""Train the demo model in a budget of wall time: `python -m demo.train --preset full --out DIR`.

Contract: DIR gets `tokenizer.json` (built once, from generated text and Python's docstrings), `trained.safetensors`
(bf16, every few minutes and at the end) and, at the end, `report.json` (held-out results of the weights as shipped);
`python -m demo.export DIR` makes the model folder of them. `latest.pt` (fp32 weights, optimizers, progress) goes to
--state, by default DIR too; `--resume` goes on from it. The learning rate follows the share of the time budget that
is spent and falls to zero at its end, so a run of any speed is a finished one; a run cut short is usable but worse.

Presets: `full` is for one H200-class GPU and 16 cores (bf16 autocast), `cpu` for one core, `micro` for tests.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from demo import data
from demo.checkpoint import TOKENIZER, deliver, load_state, load_trained, progress, save_state
from demo.heldout import PER_SET
from demo.model import Arch, Batch, DemoModel
from demo.muon import Muon
from demo.report import finish, say
from demo.sample import segments
from demo.sets import docs
from demo.tokenizer import VOCAB_SIZE
from demo.tokenizer import train as train_tokenizer

MIX = {
    "arithmetic": 0.21, "recall": 0.19, "tools": 0.23, "objects": 0.13, "stories": 0.10, "chat": 0.05, "copying": 0.07,
    "docs": 0.02,
}  # fmt: skip
# Copying first: every other set rests on it, and it is learnt soonest from short samples.
EARLY = {
    "arithmetic": 0.15, "recall": 0.20, "tools": 0.12, "objects": 0.12, "stories": 0.05, "chat": 0.05, "copying": 0.30,
    "docs": 0.01,
}  # fmt: skip
Wire = tuple[Tensor, list[int]]
SECONDS_BETWEEN = {"cuda": (15.0, 60.0, 60.0), "cpu": (30.0, 240.0, 300.0)}  # lines, validations, checkpoints


@dataclass(frozen=True, slots=True)
class Preset:
    arch: Arch
    minutes: float
    batch_tokens: int
    early_tokens: int  # tokens of the EARLY mixture before MIX
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    weight_decay: float = 0.02
    warmup_frac: float = 0.01
    hold_frac: float = 0.25
    groups: int = 6
    workers: int = 0
    mix: dict[str, float] = field(default_factory=lambda: MIX)


PRESETS = {
    "micro": Preset(Arch(128, 1, 2, 1, 64, 128, VOCAB_SIZE, tied=True, embed_scale=16.0), 0.05, 1024, 1024, groups=2),
    "cpu": Preset(Arch(256, 4, 4, 2, 64, 512, VOCAB_SIZE, tied=True, embed_scale=16.0), 95, 4096, 1_000_000),
    "full": Preset(
        Arch(256, 7, 4, 2, 64, 768, VOCAB_SIZE, embed_scale=16.0), 7.5, 32768, 8_000_000, adam_lr=0.003, groups=4,
        workers=10, mix=MIX | {"docs": 0.06, "stories": 0.12},
    ),
}  # fmt: skip


class Batches(IterableDataset[Wire]):
    """Endless packed batches as they travel; worker i of n draws from its own seed."""

    def __init__(self, tokenizer_json: str, preset: Preset, seed: int) -> None:
        self.tokenizer_json, self.preset, self.seed = tokenizer_json, preset, seed

    def __iter__(self) -> Iterator[Wire]:
        info = get_worker_info()
        worker, count = (info.id, info.num_workers) if info else (0, 1)
        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        p = self.preset
        for shares, batches, part in ((EARLY, p.early_tokens // p.batch_tokens // count, 0), (p.mix, None, 1)):
            samples = data.stream(tokenizer, self.seed * 1000 + worker * 2 + part, shares)
            for _ in itertools.repeat(None) if batches is None else range(batches):
                yield data.pack(data.take(samples, p.batch_tokens), p.groups).to_wire()


def tokenizer_texts(seed: int, per_set: int = 2500) -> Iterator[str]:
    """What the tokenizer is learnt from: conversations of every set, and all docstrings."""
    rng = Random(seed)
    for name, draw in data.SETS.items():
        for _ in range(0 if name == "docs" else per_set):
            yield "".join(text for text, _ in segments(data.with_system(rng, draw(rng, False))))
    yield from docs.pieces()


def load_tokenizer(out: Path, seed: int) -> Tokenizer:
    path = out / TOKENIZER
    if not path.exists():
        train_tokenizer(tokenizer_texts(seed)).save(str(path))
    return Tokenizer.from_file(str(path))


def lr_factor(spent_frac: float, p: Preset) -> float:
    """Warm up, hold, fall linearly to zero when the budget is spent."""
    return min(1.0, (spent_frac + 1e-3) / p.warmup_frac, max(0.0, 1 - spent_frac) / (1 - p.hold_frac))


@dataclass
class Run:
    """One training: what a state holds, and how it computes."""

    preset: Preset
    model: DemoModel
    optimizers: list[torch.optim.Optimizer]
    device: torch.device
    bf16: bool = False
    step: int = 0
    tokens: int = 0
    spent_s: float = 0.0

    @property
    def budget_s(self) -> float:
        return self.preset.minutes * 60


def make_run(preset: Preset, device: torch.device, seed: int) -> Run:
    torch.manual_seed(seed)
    model = DemoModel(preset.arch).to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    tables = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." not in n]
    norms = [p for p in model.parameters() if p.ndim == 1]
    adam = torch.optim.AdamW(
        [{"params": tables}, {"params": norms}], lr=preset.adam_lr, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0
    )
    muon = Muon(matrices, preset.muon_lr, weight_decay=preset.weight_decay)
    optimizers: list[torch.optim.Optimizer] = [muon, adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["top_lr"] = group["lr"]
    return Run(preset, model, optimizers, device)


def autocast(run: Run) -> torch.autocast:
    return torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.bf16)


def train_step(run: Run, batch: Batch, factor: float) -> Tensor:
    with autocast(run):
        losses = run.model.losses(batch)
    loss = losses.mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["top_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def held_batches(tokenizer: Tokenizer, per_set: int) -> dict[str, Wire]:
    """One batch per set from the held-out part."""
    out = {}
    for name in data.SETS:
        samples = data.stream(tokenizer, 77, {name: 1.0}, held=True)
        out[name] = data.pack(list(itertools.islice(samples, per_set)), 6).to_wire()
    return out


@torch.no_grad()
def validate(run: Run, batches: dict[str, Wire]) -> str:
    """`set loss/exact` a set. Exact: the share of samples whose learnt tokens are all the argmax, as greedy needs."""
    parts = []
    for name, batch in batches.items():
        b = Batch.from_wire(batch, run.device)
        with autocast(run):
            logits = torch.nn.functional.linear(run.model(b)[b.learn], run.model.head).float()
        loss = torch.nn.functional.cross_entropy(logits, b.target)
        wrong = logits.argmax(-1) != b.target
        sample = torch.cumsum(b.positions == 0, 0)[b.learn] - 1
        count = int(sample.max()) + 1
        missed = torch.zeros(count, device=run.device).index_add_(0, sample, wrong.float()) > 0
        parts.append(f"{name} {loss:.3f}/{100 * (1 - missed.float().mean()):.0f}%")
    return "  ".join(parts)


@dataclass
class Clock:
    """Names of the jobs that are due, by seconds spent."""

    every_s: tuple[float, float, float]
    due_s: list[float]

    def take(self, spent_s: float) -> list[int]:
        ready = [i for i, due in enumerate(self.due_s) if spent_s >= due]
        for i in ready:
            self.due_s[i] = spent_s + self.every_s[i]
        return ready


@dataclass(frozen=True)
class Folders:
    out: Path
    state: Path


def keep(run: Run, folders: Folders) -> None:
    save_state(run, folders.state)
    deliver(run.model, progress(run), folders.out)


def line(run: Run, loss: float) -> str:
    rate, left = run.tokens / run.spent_s, (run.budget_s - run.spent_s) / 60
    return f"step {run.step} tokens {run.tokens / 1e6:.2f}M loss {loss:.4f} {rate:.0f} tok/s eta {left:.1f} min"


def fit(run: Run, batches: Iterator[Wire], held: dict[str, Wire], folders: Folders) -> None:
    """Train until the budget is spent; everything in between (validation, checkpoints) counts as spent."""
    every_s = SECONDS_BETWEEN[run.device.type]
    clock = Clock(every_s, [run.spent_s + s for s in every_s])
    started = time.monotonic() - run.spent_s
    total, count = torch.zeros((), device=run.device), 0
    while run.spent_s < run.budget_s:
        batch = Batch.from_wire(next(batches), run.device)
        loss = train_step(run, batch, lr_factor(run.spent_s / run.budget_s, run.preset))
        total, count = total + loss, count + 1
        run.step, run.tokens = run.step + 1, run.tokens + len(batch.tokens)
        run.spent_s = time.monotonic() - started
        for job in clock.take(run.spent_s):
            if job == 0:
                say(line(run, total.item() / count))
                total, count = torch.zeros_like(total), 0
            elif job == 1:
                say("held-out " + validate(run, held))
            else:
                keep(run, folders)
    keep(run, folders)
    say(f"trained: {run.step} steps, {run.tokens / 1e6:.2f}M tokens in {run.spent_s / 60:.1f} min")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--minutes", type=float, help="wall-time budget of training; default the preset's")
    parser.add_argument("--out", type=Path, required=True, help="folder of tokenizer, delivery and report")
    parser.add_argument("--state", type=Path, help="folder of the full state; default --out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, help="data processes; default the preset's")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast on a CPU too: faster where it has AMX")
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers; falls back where it fails")
    parser.add_argument("--heldout", type=int, default=PER_SET, help="items a set that the report asks; 0 for none")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a number of the preset or its arch"
    )
    return parser.parse_args(argv)


def changed(preset: Preset, args: argparse.Namespace) -> Preset:
    """The preset with the command line's changes."""
    if args.minutes is not None:
        preset = replace(preset, minutes=args.minutes)
    if args.workers is not None:
        preset = replace(preset, workers=args.workers)
    for change in args.set:
        key, value = change.split("=")
        if hasattr(preset.arch, key):
            preset = replace(preset, arch=replace(preset.arch, **{key: type(getattr(preset.arch, key))(float(value))}))
        else:
            preset = replace(preset, **{key: type(getattr(preset, key))(float(value))})
    return preset


def compile_layers(run: Run, batch: Batch) -> None:
    """Compile what sees only (T, D): norms and feed-forward. One step is tried; on any failure all is as before."""
    before = [layer.feed_forward for layer in run.model.model.layers]
    state = {k: v.clone() for k, v in run.model.state_dict().items()}
    try:
        for layer in run.model.model.layers:
            layer.feed_forward.compile(dynamic=True)
        with autocast(run):
            run.model.losses(batch).mean().backward()
        say("compiled")
    except Exception as error:  # noqa: BLE001 (a compiler may fail in any way, and training can do without it)
        say(f"not compiled, going on without: {type(error).__name__}: {str(error)[:200]}")
        for layer, plain in zip(run.model.model.layers, before, strict=True):
            plain._compiled_call_impl = None
            layer.feed_forward = plain
    run.model.load_state_dict(state)
    run.model.zero_grad(set_to_none=True)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    preset = changed(PRESETS[args.preset], args)
    folders = Folders(args.out, args.state or args.out)
    for folder in (folders.out, folders.state):
        folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(args.out, args.seed)
    run = make_run(preset, torch.device(args.device), args.seed)
    run.bf16 = args.bf16 or run.device.type == "cuda"
    if args.resume:
        load_state(run, folders.state)
    say(f"{args.preset} on {args.device}: {preset.arch.parameters_on_disk / 1e6:.2f}M parameters on disk, {preset}")
    # A resumed run draws new samples.
    dataset = Batches(tokenizer.to_str(), preset, args.seed + run.step)
    prefetch = 4 if preset.workers else None
    loader = DataLoader(dataset, None, num_workers=preset.workers, prefetch_factor=prefetch,
                        pin_memory=run.device.type == "cuda")
    batches = iter(loader)
    held = held_batches(tokenizer, 200 if run.device.type == "cuda" else 32)
    if args.compile:
        compile_layers(run, Batch.from_wire(next(batches), run.device))
    fit(run, batches, held, folders)
    if args.heldout:
        finish(args.out, load_trained(args.out), args.heldout)


if __name__ == "__main__":
    sys.exit(main())
