"""Disk layouts of integer weights from their documents, over Python integers: nothing of the package is used.

A word is built field by field, least significant first. Codes q and zeros z are unsigned; w = (q - z) * scale.
"""

from __future__ import annotations

import numpy as np
import torch

AWQ_COLUMNS = [0, 2, 4, 6, 1, 3, 5, 7]


def as_int32(words):
    return torch.from_numpy(np.array(words, dtype=np.uint64).astype(np.uint32).view(np.int32))


def stream(values, bits):
    """One dense little-endian stream of fields, cut into 32-bit words."""
    total = 0
    for i, value in enumerate(values):
        total += int(value) << (bits * i)
    return [(total >> (32 * w)) & 0xFFFFFFFF for w in range(-(-len(values) * bits // 32))]


def awq_rows(matrix):
    """[R, L] -> int32 [R, L / 8] in the order of AutoAWQ's gemm."""
    rows = []
    for row in matrix.tolist():
        words = []
        for start in range(0, len(row), 8):
            words.append(sum(row[start + column] << (4 * i) for i, column in enumerate(AWQ_COLUMNS)))
        rows.append(words)
    return as_int32(rows)


def awq(q_NM, z_NQ, scales_NQ):
    return {
        "qweight": awq_rows(q_NM.T),
        "qzeros": awq_rows(z_NQ.T),
        "scales": scales_NQ.T.contiguous(),
    }


def gptq(q_NM, z_NQ, scales_NQ, bits, g_idx, offset):
    """offset 1: v1 files, which store zero - 1; 0: v2."""
    qweight = as_int32([stream(row, bits) for row in q_NM.tolist()]).T.contiguous()
    qzeros = as_int32([stream([z - offset for z in row], bits) for row in z_NQ.T.tolist()])
    order = g_idx.to(torch.int32)
    return {"qweight": qweight, "qzeros": qzeros, "scales": scales_NQ.T.contiguous(), "g_idx": order}


def compressed(q_NM, z_NQ, scales_NQ, bits, g_idx=None):
    """pack-quantized; z_NQ None where symmetric."""
    tensors = {
        "weight_packed": as_int32([stream(row, bits) for row in q_NM.tolist()]),
        "weight_scale": scales_NQ,
        "weight_shape": torch.tensor(q_NM.shape, dtype=torch.int64),
    }
    if z_NQ is not None:
        tensors["weight_zero_point"] = as_int32([stream(row, bits) for row in z_NQ.T.tolist()]).T.contiguous()
    if g_idx is not None:
        tensors["weight_g_idx"] = g_idx.to(torch.int32)
    return tensors


def dequantize(q_NM, z_NQ, scales_NQ, g_idx):
    """The formula every one of these layouts means, by column."""
    order = enumerate(g_idx.tolist())
    return torch.stack([(q_NM[:, m] - z_NQ[:, g]).float() * scales_NQ[:, g].float() for m, g in order], 1)
