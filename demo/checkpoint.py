"""What training leaves: a state to go on from, and a delivery that `demo.export` makes a model folder of.

Contract: `save_state` writes one file that holds everything (weights in fp32, optimizers, progress) and replaces the
older one in one rename. `deliver` writes `trained.safetensors` (bf16, the training names, the architecture and the
progress in its metadata) the same way: small enough to travel, and complete without the state.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from demo.model import Arch, DemoModel

if TYPE_CHECKING:
    from demo.train import Run

STATE, DELIVERY, TOKENIZER, REPORT = "latest.pt", "trained.safetensors", "tokenizer.json", "report.json"


@dataclass(frozen=True)
class Trained:
    """A model as delivered, and what is known of its training."""

    model: DemoModel
    facts: dict[str, Any] = field(default_factory=dict)


def save_state(run: Run, folder: Path) -> None:
    optimizers = [o.state_dict() for o in run.optimizers]
    state = {
        "arch": asdict(run.preset.arch),
        "model": run.model.state_dict(),
        "optimizers": optimizers,
        **progress(run),
    }
    partial = folder / f"{STATE}.partial"
    torch.save(state, partial)
    partial.replace(folder / STATE)


def progress(run: Run) -> dict[str, Any]:
    return {"step": run.step, "tokens": run.tokens, "spent_s": run.spent_s}


def read_state(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    return dict(torch.load(path, map_location=device, weights_only=True))


def load_state(run: Run, folder: Path) -> None:
    """Go on where the state was saved. The architecture must be the same."""
    state = read_state(folder / STATE, run.device)
    if state["arch"] != asdict(run.preset.arch):
        raise SystemExit(
            f"{folder / STATE} is of {state['arch']}, not of {asdict(run.preset.arch)}: name another --out"
        )
    run.model.load_state_dict(state["model"])
    for optimizer, saved in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    run.step, run.tokens, run.spent_s = state["step"], state["tokens"], state["spent_s"]


def deliver(model: DemoModel, facts: dict[str, Any], folder: Path) -> None:
    tensors: dict[str, Tensor] = {k: v.detach().bfloat16().contiguous().cpu() for k, v in model.state_dict().items()}
    partial = folder / f"{DELIVERY}.partial"
    partial.write_bytes(save(tensors, {"arch": json.dumps(asdict(model.arch)), "facts": json.dumps(facts)}))
    partial.replace(folder / DELIVERY)


def load_delivery(path: Path) -> Trained:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
    model = DemoModel(Arch(**json.loads(metadata["arch"])))
    model.load_state_dict(tensors)
    return Trained(model, json.loads(metadata["facts"]))


def load_trained(folder: Path) -> Trained:
    """The delivery in `folder`, or its state where training was cut short or still runs."""
    if (folder / DELIVERY).is_file():
        return load_delivery(folder / DELIVERY)
    if not (folder / STATE).is_file():
        raise SystemExit(f"{folder} has neither {DELIVERY} nor {STATE}: train first (python -m demo.train --help)")
    state = read_state(folder / STATE)
    model = DemoModel(Arch(**state["arch"]))
    model.load_state_dict(state["model"])
    return Trained(model, {k: state[k] for k in ("step", "tokens", "spent_s")})
