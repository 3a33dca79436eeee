"""A small tokenizer and an untrained model of the demo's making, for its tests: made once a session, never shipped."""

from __future__ import annotations

from functools import lru_cache

import torch
from demo.model import Arch, DemoModel
from demo.tokenizer import VOCAB_SIZE, train
from demo.train import tokenizer_texts
from tokenizers import Tokenizer

ARCH = Arch(256, 2, 4, 2, 64, 128, VOCAB_SIZE, tied=True, embed_scale=16.0)


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """Learnt from a third of the text that the real one is learnt from."""
    return train(tokenizer_texts(1, per_set=800))


def random_model(arch: Arch = ARCH, seed: int = 0) -> DemoModel:
    """Weights wide enough that attention is far from uniform, and norms that are not all ones."""
    model = DemoModel(arch)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=draw)
            p.copy_(1 + 0.3 * noise if p.ndim == 1 else 0.15 * noise)
    return model
