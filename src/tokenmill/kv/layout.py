"""Where tokens lie in paged caches: kinds by name, bytes of a block (pure: they feed the memory plan), flat indices.

A cache of B blocks is allocated with one spare block behind them: a write to -1 lands on its last token, and nobody
reads it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill import find
from tokenmill.errors import ConfigError
from tokenmill.kv.contract import KVKind

SPARE_BLOCKS = 1
# Modules of this room that are no kind, and the kind that a model brings itself.
NOT_CHOSEN = ("contract", "layout", "quantize", "rotate", "latent")


def kind_names() -> list[str]:
    """Cache kinds there are, by the names of `CacheConfig.kv`."""
    modules = [name for name in find.names("tokenmill.kv") if name not in NOT_CHOSEN]
    return [name.replace("_", "-") for name in modules]


def load_kind(name: str) -> KVKind:
    """The kind called `name`. Raises ConfigError that lists what there is."""
    if name not in kind_names():
        raise ConfigError(f"KV cache kind is {name!r}; it must be one of {', '.join(kind_names())}")
    kind: KVKind = find.load("tokenmill.kv", name.replace("-", "_")).KIND
    return kind


def kind_of(latent: bool, name: str) -> KVKind:
    """The kind a model's cache has when the user asked for `name`. Raises ConfigError where it cannot have that."""
    if not latent:
        return load_kind(name)
    if name != "auto":
        raise ConfigError(
            f"KV cache kind is {name!r}, but this model's cache holds one latent a token, already small, which is kept "
            "as it is: use --quant-policy 0"
        )
    kind: KVKind = find.load("tokenmill.kv", "latent").KIND
    return kind


def bytes_per_block(kind: str, num_heads: int, head_dim: int, block_tokens: int, itemsize: int) -> int:
    """Bytes of one block of one layer: K and V of `block_tokens` tokens, scales included."""
    return block_tokens * load_kind(kind).bytes_per_token(num_heads, head_dim, itemsize)


def context_index(tables_RB: Tensor, totals_R: Tensor, block_tokens: int, max_context: int) -> Tensor:
    """Flat index of each row's tokens, int64 [R, L] with L = `max_context` rounded up to whole blocks.

    Places past a row's end repeat its last token, so that a gather never brings in another row's numbers (a NaN among
    them would survive a mask).
    """
    blocks = min(-(-max_context // block_tokens), tables_RB.shape[1])
    places_L = torch.arange(blocks * block_tokens, device=tables_RB.device)
    last_R1 = (totals_R.long() - 1).clamp(min=0)[:, None]
    places_RL = torch.minimum(places_L[None, :], last_R1)
    blocks_RL = tables_RB[:, :blocks].long().gather(1, places_RL // block_tokens)
    return blocks_RL * block_tokens + places_RL % block_tokens


def flat(plane: Tensor) -> Tensor:
    """A plane [blocks, S, ...] as [tokens, ...], sharing storage."""
    return plane.view(-1, *plane.shape[2:])


def blocks(plane: Tensor, tables_RB: Tensor) -> Tensor:
    """Whole blocks of a plane [blocks, S, ...] in table order: [R, B * S, ...]. One long copy a block."""
    R, B = tables_RB.shape
    picked = plane.flatten(1).index_select(0, tables_RB.flatten())
    return picked.view(R, B * plane.shape[1], *plane.shape[2:])
