"""Whole tiny models with the Triton backend (on a GPU, else in its interpreter), against the same with the reference.

Prints, for every family and cache kind, the largest difference of logits over the largest logit: a prompt in chunks,
then single tokens, whose blocks hand sums of squares to one another.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from tokenmill.models.build import ModelBuild, build_model
from tokenmill.models.solo import Solo
from tokenmill.models.tiny import make_tiny

# Chunks of 33 tokens are not fused with their norms, the rest is.
STEPS = (33, 5, 1, 1, 1)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def logits(folder: Path, kv: str, backends: tuple[str, ...]) -> Tensor:
    model = build_model(folder, ModelBuild(DEVICE, kv=kv, backends=backends))
    solo, ids_T = Solo(model, sum(STEPS), kv), torch.arange(sum(STEPS), device=DEVICE) * 7 % 250 + 3
    return torch.cat([solo.logits(part) for part in torch.split(ids_T, list(STEPS))])


def main(families: list[str]) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in families:
            made = make_tiny(family, Path(folder) / family, std=0.1)
            for kv in ("auto", "int8", "int4") if family == "llama" else ("auto",):
                ours, reference = (logits(made, kv, backends) for backends in (("triton",), ()))
                found[f"{family} {kv}"] = float((ours - reference).abs().max() / reference.abs().max())
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
