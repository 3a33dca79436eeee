"""The report of a training: progress, architecture, and held-out results of the weights as they are shipped."""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from demo import heldout
from demo.checkpoint import REPORT, TOKENIZER, Trained
from demo.measure import Result, measure, table
from tokenmill.eval.tasks.demo_sets import GOALS


def say(text: str) -> None:
    sys.stdout.write(time.strftime("%H:%M:%S ") + text + "\n")
    sys.stdout.flush()


def finish(folder: Path, trained: Trained, per_set: int = heldout.PER_SET) -> dict[str, Any]:
    """Measure what was trained in `folder`, print the table, write the report there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.monotonic()
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    results = measure(trained.model.to(device), tokenizer, list(heldout.items(per_set=per_set)))
    say(f"held-out items, answered greedily in {time.monotonic() - started:.0f} s\n{table(results)}")
    for result in results:
        for item, text in result.wrong:
            say(f"{result.set}: {item.messages[-1]['content'][-200:]!r} -> {text[:200]!r}")
    report = make_report(trained, results)
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return report


def make_report(trained: Trained, results: list[Result]) -> dict[str, Any]:
    return {
        "training": trained.facts | {"torch": torch.__version__, "machine": machine()},
        "architecture": asdict(trained.model.arch),
        "parameters": trained.model.arch.parameters_on_disk,
        "heldout": {
            r.set: {"right": r.right, "ended": r.ended, "of": r.total, "share": round(r.share, 4), "goal": GOALS[r.set]}
            for r in results
        },
    }


def machine() -> str:
    """The kind of device, not its name on a network."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
