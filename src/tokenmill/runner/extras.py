"""What rows want beside a token: log-probabilities, logits, hidden states, pooling. Rare rows, so Python loops.

Everything is of the raw distribution: before bias, penalties, temperature and filters. POOL is the final hidden state
of the row's last token, not normalised, or a reward model's score. Logits are made `CHUNK` positions at a time, so
that a long prompt's never stand whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.engine.contract import I32, RowExtras
from tokenmill.models.contract import Model
from tokenmill.runner.inputs import RowExtra, SampleWork
from tokenmill.runner.sampler import raw_logprobs
from tokenmill.types import Want

CHUNK = 256


@dataclass(slots=True)
class Parts:
    """Fields of `RowExtras` as tensors, by key; filled on the device, fetched by `fetch`."""

    by_key: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)

    def add(self, key: tuple[int, int], **tensors: Tensor) -> None:
        self.by_key.setdefault(key, {}).update(tensors)

    def to_host(self) -> None:
        """Queues the copies; on CUDA they are done when the step's event is."""
        for parts in self.by_key.values():
            for name, tensor in parts.items():
                parts[name] = tensor.to("cpu", non_blocking=True)

    def rows(self) -> dict[tuple[int, int], RowExtras]:
        return {
            key: RowExtras(**{name: tensor.numpy() for name, tensor in parts.items()})
            for key, parts in self.by_key.items()
        }


def gather_extras(parts: Parts, extras: list[RowExtra], hidden_TD: Tensor, model: Model) -> None:
    """What rows want of their own positions."""
    for extra in extras:
        mine = hidden_TD[extra.first : extra.first + extra.count]
        if extra.want & Want.PROMPT_LOGPROBS and extra.targets is not None:
            parts.add(extra.key, **_prompt_logprobs(mine, extra.targets, extra.num_top, model))
        if extra.want & Want.LOGITS:
            parts.add(extra.key, logits=_logits(mine, model))
        if extra.want & Want.HIDDEN:
            parts.add(extra.key, hidden=mine.float())
        if extra.want & Want.POOL:
            parts.add(extra.key, pool=model.pool(mine[-1:])[0])


def _logits(hidden_TD: Tensor, model: Model) -> Tensor:
    """Long ones are taken to the host part by part, although that waits: the memory plan has no room for them whole."""
    pieces = torch.split(hidden_TD, CHUNK)
    if len(pieces) == 1:
        return model.logits(hidden_TD)
    return torch.cat([model.logits(piece).cpu() for piece in pieces])


def _prompt_logprobs(hidden_TD: Tensor, targets: I32, num_top: int, model: Model) -> dict[str, Tensor]:
    known = np.flatnonzero(targets >= 0)
    if not len(known):
        empty = hidden_TD.new_zeros(0, dtype=torch.float32)
        ids = hidden_TD.new_zeros((0, num_top), dtype=torch.int32)
        return _named("prompt_", empty, ids, empty.new_zeros(0, num_top))
    index, wanted = (_there(array, hidden_TD.device) for array in (known, targets[known]))
    chunks = [
        raw_logprobs(model.logits(part), ids, num_top)
        for part, ids in zip(torch.split(hidden_TD[index], CHUNK), torch.split(wanted, CHUNK), strict=True)
    ]
    return _named("prompt_", *(torch.cat(column) for column in zip(*chunks, strict=True)))


def _there(array: NDArray[Any], device: torch.device) -> Tensor:
    """int64 on the device, without waiting for it: only pinned memory is copied in the background."""
    host = torch.from_numpy(array.astype(np.int64))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def add_logprobs(parts: Parts, work: SampleWork, raw_MV: Tensor, tokens_M: Tensor) -> None:
    """Raw log-probabilities of drawn tokens; raw_MV and tokens_M are of `work.logprob_rows`."""
    logprobs, ids, values = raw_logprobs(raw_MV, tokens_M, int(work.num_top.max(initial=0)))
    for i, (row, top) in enumerate(zip(work.logprob_rows, work.num_top, strict=True)):
        key = (int(work.slots[row]), int(work.epochs[row]))
        parts.add(key, **_named("", logprobs[i : i + 1], ids[i : i + 1, :top], values[i : i + 1, :top]))


def _named(prefix: str, logprobs: Tensor, ids: Tensor, values: Tensor) -> dict[str, Tensor]:
    return {f"{prefix}logprobs": logprobs, f"{prefix}top_ids": ids, f"{prefix}top_logprobs": values}
