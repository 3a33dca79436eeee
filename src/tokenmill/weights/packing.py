"""Bit streams of small codes in 32-bit words, and the AWQ order of nibbles. Pure functions on tensors.

A stream is dense and least significant bit first: code i of width `bits` takes bits [i * bits, (i + 1) * bits) of the
row's words, so 3-bit codes may straddle two words (the GPTQ and compressed-tensors layout). Words are int32; the last
is padded with zeros. Leading axes are free.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = (2, 3, 4, 8)
# Field i of an AWQ word holds column AWQ_COLUMNS[i] of its eight; AWQ_FIELDS is the inverse.
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
AWQ_FIELDS = (0, 4, 1, 5, 2, 6, 3, 7)


def num_words(length: int, bits: int) -> int:
    return -(-length * bits // 32)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [.., L] of values below 2^bits -> int32 [.., ceil(L * bits / 32)]."""
    length = codes.shape[-1]
    unit = 32 if bits == 3 else 32 // bits
    codes = torch.nn.functional.pad(codes, (0, -length % unit)).contiguous()
    units = codes.reshape(*codes.shape[:-1], -1, unit)
    words = _pack_3(units) if bits == 3 else _pack_bytes(units, bits)
    return words.flatten(-2)[..., : num_words(length, bits)].contiguous()


def unpack(words: Tensor, bits: int, length: int) -> Tensor:
    """int32 [.., W] -> uint8 [.., length]."""
    if bits == 3:
        words = torch.nn.functional.pad(words, (0, -words.shape[-1] % 3))
        codes = _unpack_3(words.reshape(*words.shape[:-1], -1, 3))
    else:
        codes = _unpack_bytes(words.contiguous().view(torch.uint8), bits)
    return codes[..., :length].contiguous()


def _pack_bytes(units: Tensor, bits: int) -> Tensor:
    """[.., U, 32 // bits] -> int32 [.., U, 1], through bytes: fields of a byte, then four bytes of a word."""
    fields = units.reshape(*units.shape[:-1], 4, 8 // bits)
    packed: Tensor = fields[..., 0].clone()
    for i in range(1, 8 // bits):
        packed |= fields[..., i] << (bits * i)
    return packed.contiguous().view(torch.int32)


def _unpack_bytes(packed: Tensor, bits: int) -> Tensor:
    mask = (1 << bits) - 1
    fields = [(packed >> shift) & mask for shift in range(0, 8, bits)]
    return torch.stack(fields, -1).flatten(-2)


def _pack_3(units: Tensor) -> Tensor:
    """[.., U, 32] -> int32 [.., U, 3]."""
    words = torch.zeros(*units.shape[:-1], 3, dtype=torch.int64, device=units.device)
    for i in range(32):
        word, shift = divmod(3 * i, 32)
        field = units[..., i].long()
        words[..., word] |= (field << shift) & 0xFFFFFFFF
        if shift > 29:
            words[..., word + 1] |= field >> (32 - shift)
    return _to_int32(words)


def _unpack_3(words: Tensor) -> Tensor:
    """[.., U, 3] -> uint8 [.., U * 32]."""
    wide = words.long() & 0xFFFFFFFF
    codes = torch.empty(*words.shape[:-1], 32, dtype=torch.uint8, device=words.device)
    for i in range(32):
        word, shift = divmod(3 * i, 32)
        field = wide[..., word] >> shift
        if shift > 29:
            field = field | (wide[..., word + 1] << (32 - shift))
        codes[..., i] = (field & 7).to(torch.uint8)
    return codes.flatten(-2)


def _to_int32(words: Tensor) -> Tensor:
    """Unsigned 32-bit values held in int64, as int32 of the same bits."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def add_words(words: Tensor, addend: Tensor) -> Tensor:
    """Sum of two int32 tensors modulo 2^32, carries crossing fields as they do in the word."""
    return _to_int32((words.long() + addend.long()) & 0xFFFFFFFF)


def awq_unpack(words: Tensor) -> Tensor:
    """int32 [.., L / 8] in AWQ "gemm" order -> uint8 [.., L] in column order."""
    fields = unpack(words, 4, words.shape[-1] * 8).reshape(*words.shape, 8)
    return fields[..., list(AWQ_FIELDS)].flatten(-2)


def awq_pack(codes: Tensor) -> Tensor:
    """uint8 [.., L], L a multiple of 8, values below 16 -> int32 [.., L / 8] in AWQ "gemm" order."""
    fields = codes.reshape(*codes.shape[:-1], -1, 8)
    return pack(fields[..., list(AWQ_COLUMNS)].flatten(-2), 4)
