"""Train the demo model in a budget of wall time: `python -m demo.train --preset cpu --minutes 95 --out DIR`.

Contract: DIR gets `tokenizer.json` (built once, from generated text and Python's docstrings), `latest.pt` (weights, optimizers and
elapsed seconds, every few minutes and at the end) and nothing else; `--resume` goes on from it. The learning rate falls linearly to
zero at the end of the budget, so a run cut short is usable but worse. `demo.export` writes the InternLM2 folder.

Presets: `full` is for one H200-class GPU (bf16 autocast, 7.8 minutes; generation by worker processes is the limit, see
`demo/report.md`), `cpu` for one core.
"""
from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from demo import data
from demo.model import Arch, Batch, DemoModel
from demo.muon import Muon
from demo.sample import segments
from demo.sets import docs
from demo.tokenizer import VOCAB_SIZE
from demo.tokenizer import train as train_tokenizer

MIX = {"arithmetic": 0.21, "recall": 0.19, "tools": 0.23, "objects": 0.13, "stories": 0.10, "chat": 0.05, "copying": 0.07, "docs": 0.02}
EARLY = {"arithmetic": 0.15, "recall": 0.20, "tools": 0.12, "objects": 0.12, "stories": 0.05, "chat": 0.05, "copying": 0.30, "docs": 0.01}


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
    "cpu": Preset(Arch(256, 4, 4, 2, 64, 512, VOCAB_SIZE, tied=True, embed_scale=16.0), 95, 4096, 1_000_000),
    "full": Preset(
        Arch(256, 7, 4, 2, 64, 768, VOCAB_SIZE, embed_scale=16.0), 7.8, 32768, 8_000_000, adam_lr=0.003, groups=4, workers=15,
        mix=MIX | {"docs": 0.06, "stories": 0.12},
    ),
}


class Batches(IterableDataset[Batch]):
    """Endless packed batches; worker i of n draws from its own seed."""

    def __init__(self, tokenizer_json: str, preset: Preset, seed: int) -> None:
        self.tokenizer_json, self.preset, self.seed = tokenizer_json, preset, seed

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, count = (info.id, info.num_workers) if info else (0, 1)
        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        p = self.preset
        for shares, batches, part in ((EARLY, p.early_tokens // p.batch_tokens // count, 0), (p.mix, None, 1)):
            samples = data.stream(tokenizer, self.seed * 1000 + worker * 2 + part, shares)
            for _ in itertools.repeat(None) if batches is None else range(batches):
                yield data.pack(data.take(samples, p.batch_tokens), p.groups)


def tokenizer_texts(seed: int, per_set: int = 2500) -> Iterator[str]:
    """What the tokenizer is learnt from: conversations of every set, and all docstrings."""
    rng = Random(seed)
    for name, draw in data.SETS.items():
        for _ in range(0 if name == "docs" else per_set):
            yield "".join(text for text, _ in segments(data.with_system(rng, draw(rng, False))))
    yield from docs.pieces()


def load_tokenizer(out: Path, seed: int) -> Tokenizer:
    path = out / "tokenizer.json"
    if not path.exists():
        train_tokenizer(tokenizer_texts(seed)).save(str(path))
    return Tokenizer.from_file(str(path))


def lr_factor(progress: float, p: Preset) -> float:
    """Warm up, hold, fall linearly to zero at progress one."""
    return min(1.0, (progress + 1e-3) / p.warmup_frac, max(0.0, 1 - progress) / (1 - p.hold_frac))


@dataclass
class Run:
    """Everything that a checkpoint holds."""

    preset: Preset
    model: DemoModel
    optimizers: list[torch.optim.Optimizer]
    device: torch.device
    bf16: bool = False
    step: int = 0
    tokens: int = 0
    spent_s: float = 0.0

    def save(self, path: Path) -> None:
        state = {
            "arch": asdict(self.preset.arch), "model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step, "tokens": self.tokens, "spent_s": self.spent_s,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.spent_s = state["step"], state["tokens"], state["spent_s"]


def make_run(preset: Preset, device: torch.device, seed: int) -> Run:
    torch.manual_seed(seed)
    model = DemoModel(preset.arch).to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    tables = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." not in n]
    norms = [p for p in model.parameters() if p.ndim == 1]
    adam = torch.optim.AdamW([{"params": tables}, {"params": norms}], lr=preset.adam_lr, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0)
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, preset.muon_lr, weight_decay=preset.weight_decay), adam]
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


def held_batches(tokenizer: Tokenizer, per_set: int) -> dict[str, Batch]:
    """One batch per set from the held-out half."""
    out = {}
    for name in data.SETS:
        samples = data.stream(tokenizer, 77, {name: 1.0}, held=True)
        out[name] = data.pack(list(itertools.islice(samples, per_set)), 6)
    return out


@torch.no_grad()
def validate(run: Run, batches: dict[str, Batch]) -> str:
    """`set loss/exact` per set; exact is the share of samples whose learnt tokens are all the argmax, as greedy decoding would need."""
    parts = []
    for name, batch in batches.items():
        b = batch.to(run.device)
        with autocast(run):
            logits = torch.nn.functional.linear(run.model(b)[b.learn], run.model.head).float()
        loss = torch.nn.functional.cross_entropy(logits, b.target)
        wrong = logits.argmax(-1) != b.target
        sample = torch.cumsum(b.positions == 0, 0)[b.learn] - 1
        count = int(sample.max()) + 1
        missed = torch.zeros(count, device=run.device).index_add_(0, sample, wrong.float()) > 0
        parts.append(f"{name} {loss:.3f}/{100 * (1 - missed.float().mean()):.0f}%")
    return "  ".join(parts)


def say(text: str) -> None:
    sys.stdout.write(time.strftime("%H:%M:%S ") + text + "\n")
    sys.stdout.flush()


def fit(run: Run, batches: Iterator[Batch], held: dict[str, Batch], out: Path, every_s: tuple[float, float, float]) -> None:
    """Train until the budget is spent. `every_s`: seconds between progress lines, validations, checkpoints."""
    budget = run.preset.minutes * 60
    last, before = time.monotonic(), run.spent_s
    due = [run.spent_s + s for s in every_s]
    mean, seen = torch.zeros((), device=run.device), 0
    while run.spent_s < budget:
        batch = next(batches)
        loss = train_step(run, batch.to(run.device), lr_factor(run.spent_s / budget, run.preset))
        mean, seen = mean + loss, seen + 1
        run.step, run.tokens = run.step + 1, run.tokens + len(batch.tokens)
        now = time.monotonic()
        run.spent_s, last = run.spent_s + now - last, now
        if run.spent_s >= due[0]:
            rate = run.tokens / run.spent_s
            say(f"step {run.step} tokens {run.tokens / 1e6:.2f}M loss {mean.item() / seen:.4f} {rate:.0f} tok/s eta {(budget - run.spent_s) / 60:.1f} min")
            mean, seen, due[0] = torch.zeros_like(mean), 0, run.spent_s + every_s[0]
        if run.spent_s >= due[1]:
            say("held-out " + validate(run, held))
            due[1] = run.spent_s + every_s[1]
        if run.spent_s >= due[2]:
            run.save(out / "latest.pt")
            due[2] = run.spent_s + every_s[2]
    run.save(out / "latest.pt")
    say(f"done: {run.step} steps, {run.tokens / 1e6:.2f}M tokens in {(run.spent_s - before) / 60:.1f} min; held-out {validate(run, held)}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--minutes", type=float, help="wall-time budget; default the preset's")
    parser.add_argument("--out", type=Path, required=True, help="folder of tokenizer.json and latest.pt")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, help="data processes; default the preset's")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast on a CPU too: faster where it has AMX")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a number of the preset (also of its arch)")
    return parser.parse_args(argv)


def changed(preset: Preset, args: argparse.Namespace) -> Preset:
    """The preset with the command line's changes."""
    from dataclasses import replace

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


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    preset = changed(PRESETS[args.preset], args)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(args.out, args.seed)
    run = make_run(preset, torch.device(args.device), args.seed)
    run.bf16 = args.bf16 or args.device == "cuda"
    if args.resume:
        run.load(args.out / "latest.pt")
    say(f"{args.preset} on {args.device}: {preset.arch.parameters_on_disk / 1e6:.2f}M parameters on disk, {preset}")
    seed = args.seed + run.step  # a resumed run draws new samples
    dataset = Batches(tokenizer.to_str(), preset, seed)
    loader = DataLoader(dataset, batch_size=None, num_workers=preset.workers, prefetch_factor=8 if preset.workers else None)
    short = args.device == "cuda"
    fit(run, iter(loader), held_batches(tokenizer, 32 if not short else 200), args.out, (15, 60, 60) if short else (30, 240, 300))


if __name__ == "__main__":
    main()
