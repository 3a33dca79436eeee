"""The order in which 4-bit weights lie for the GPU, made once when a weight is prepared. Plain torch, on any device.

A tile is 16 rows by 128 codes in 1 KiB: [N / 16, M / 128, 16, 32] words of 16 bits, tiles of a stripe of rows one
behind the other, so that a stripe is read as one stream. Nibble p of word i is code 32 p + i of the row's 128: nibbles
of a place are 32 neighbours, and two words in a register give two codes with one shift and one masked or.

Rows and codes past the weight's own hold code 0 with scale 0, and meet inputs read as 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tokenmill.weights.classes import IntGroup

ROWS, CODES, WORDS = 16, 128, 32
# What a code 0 is in the mantissa of each float; 0: codes are turned into floats as numbers.
BIAS = {torch.float16: 1024, torch.bfloat16: 128, torch.float32: 0}


def pack_nibbles(codes_NM: Tensor) -> Tensor:
    """uint8 [N, M] of values below 16 -> int16 [N / 16, M / 128, 16, 32], rounded up."""
    n, m = codes_NM.shape
    padded = functional.pad(codes_NM, (0, -m % CODES, 0, -n % ROWS)).to(torch.int32)
    tiles = padded.view(-1, ROWS, padded.shape[1] // CODES, CODES // WORDS, WORDS).transpose(1, 2)
    words = tiles[..., 0, :].clone()
    for place in range(1, CODES // WORDS):
        words |= tiles[..., place, :] << (4 * place)
    return torch.where(words > 32767, words - 65536, words).to(torch.int16).contiguous()


def by_group(per_group_NQ: Tensor, num_groups: int, dtype: torch.dtype) -> Tensor:
    """[N, Q] -> [num_groups, N padded to whole tiles]: a program reads neighbours."""
    n, q = per_group_NQ.shape
    return functional.pad(per_group_NQ, (0, num_groups - q, 0, -n % ROWS)).T.to(dtype).contiguous()


def in_order(weight: IntGroup) -> tuple[Tensor, Tensor | None] | None:
    """Codes uint8 [N, M] with each group's side by side, and the in-feature of each column where that moved any.

    None where act-order's groups are not all of `group` members (a cut off part of such a weight).
    """
    codes_NM = weight.unpacked()
    if weight.g_idx is None:
        return codes_NM, None
    index_M = weight.g_idx[0].long()
    counts = torch.bincount(index_M, minlength=weight.num_groups)
    if weight.group is None or bool((counts != weight.group).any()):
        return None
    order_M = index_M.argsort(stable=True)
    return codes_NM[:, order_M], order_M
