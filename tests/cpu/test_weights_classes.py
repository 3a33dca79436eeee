"""Weight classes: numbers against formulas written out here, split and join as exact inverses, loud refusals."""

import numpy as np
import pytest
import torch

from tokenmill.errors import FormatError
from tokenmill.weights import packing
from tokenmill.weights.classes import Dense, Fp8Block, Fp8Channel, Fp8Tensor, Int8Channel, IntGroup
from tokenmill.weights.fuse import fuse
from tokenmill.weights.record import identical, stack

E4M3 = torch.float8_e4m3fn


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def int_group(n=32, m=256, bits=4, group=64, asym=True, act_order=False, lead=(), dtype=torch.float16, seed=0):
    g = gen(seed)
    q = 1 if group is None else -(-m // group)
    codes = torch.randint(0, 1 << bits, (*lead, n, m), generator=g, dtype=torch.uint8)
    scales = (torch.randn(*lead, n, q, generator=g) * 0.05).to(dtype)
    zeros = torch.randint(1, 1 << bits, (*lead, n, q), generator=g).to(torch.int16) if asym else None
    order = None
    if act_order:
        order = (torch.randperm(m, generator=g) // (group or m)).to(torch.int32).expand(*lead, 1, m).contiguous()
    return IntGroup(packing.pack(codes, bits), scales, zeros, bits, group, m, order)


def int8_channel(n=32, m=256, lead=(), seed=0, activation="int8-token"):
    codes = torch.randint(-128, 128, (*lead, n, m), generator=gen(seed)).to(torch.int8)
    return Int8Channel(codes, torch.rand(*lead, n, 1, generator=gen(seed + 1)) + 0.1, activation)


def fp8_codes(n, m, lead=(), seed=0):
    return torch.randn(*lead, n, m, generator=gen(seed)).to(E4M3)


def fp8_tensor(n=32, m=256, lead=(), seed=0):
    return Fp8Tensor(fp8_codes(n, m, lead, seed), torch.full((*lead, 1, 1), 0.25))


def fp8_channel(n=32, m=256, lead=(), seed=0):
    return Fp8Channel(fp8_codes(n, m, lead, seed), torch.rand(*lead, n, 1, generator=gen(seed)) + 0.1)


def fp8_block(n=32, m=256, lead=(), seed=0, block=(16, 64)):
    blocks = (-(-n // block[0]), -(-m // block[1]))
    return Fp8Block(fp8_codes(n, m, lead, seed), torch.rand(*lead, *blocks, generator=gen(seed)) + 0.1, block)


def dense(n=32, m=256, lead=(), seed=0):
    return Dense(torch.randn(*lead, n, m, generator=gen(seed)).bfloat16())


MAKERS = [int_group, int8_channel, fp8_tensor, fp8_channel, fp8_block, dense]


def slow_unpack(words, bits, length):
    """Bit by bit over Python integers: the definition of the stream."""
    out = np.zeros((words.shape[0], length), dtype=np.int64)
    for r, row in enumerate(words.numpy().astype(np.uint32)):
        stream = sum(int(word) << (32 * i) for i, word in enumerate(row))
        out[r] = [(stream >> (bits * i)) & ((1 << bits) - 1) for i in range(length)]
    return out


@pytest.mark.parametrize("bits", packing.BITS)
@pytest.mark.parametrize("length", [32, 40, 96, 7])
def test_stream_of_bits(bits, length):
    codes = torch.randint(0, 1 << bits, (5, length), generator=gen(1), dtype=torch.uint8)
    words = packing.pack(codes, bits)
    assert words.dtype == torch.int32 and words.shape == (5, -(-length * bits // 32))
    assert np.array_equal(slow_unpack(words, bits, length), codes.numpy())
    assert torch.equal(packing.unpack(words, bits, length), codes)


def test_awq_order_is_the_published_vector():
    """Columns holding 0..7 pack to 0x75316420 (LMDeploy's surface, 5.2)."""
    codes = torch.arange(8, dtype=torch.uint8).reshape(1, 8)
    assert packing.awq_pack(codes).item() == 0x75316420
    assert torch.equal(packing.awq_unpack(packing.awq_pack(codes)), codes)


def test_add_words_wraps_and_borrows():
    ones = torch.tensor([0x11111111], dtype=torch.int32)
    assert packing.add_words(torch.tensor([-1], dtype=torch.int32), ones).item() == 0x11111110
    assert packing.add_words(torch.tensor([0x7FFFFFFF], dtype=torch.int32), ones).item() == 0x91111110 - (1 << 32)


@pytest.mark.parametrize("bits", packing.BITS)
@pytest.mark.parametrize("group", [32, 128, None])
@pytest.mark.parametrize("asym", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_int_group_dequantizes_by_the_formula(bits, group, asym, act_order):
    w = int_group(8, 160, bits, group, asym, act_order)
    q = slow_unpack(w.codes, bits, 160)
    got = w.dequantize()
    assert got.dtype == torch.float32 and got.shape == w.shape == (8, 160)
    for r in range(8):
        for c in range(0, 160, 13):
            j = int(w.g_idx[0, c]) if act_order else (0 if group is None else c // group)
            zero = int(w.zeros[r, j]) if asym else 1 << (bits - 1)
            expected = np.float32(q[r, c] - zero) * np.float32(w.scales[r, j].item())
            assert got[r, c].item() == expected


def test_negative_scales_are_kept():
    w = int_group(4, 64, 4, 32, asym=False)
    assert (w.scales < 0).any() and (w.scales > 0).any()
    q = torch.from_numpy(slow_unpack(w.codes, 4, 64)).float()
    assert torch.equal(w.dequantize(), (q - 8) * w.scales.float().repeat_interleave(32, 1))


def test_fp8_block_with_partial_edges():
    w = fp8_block(40, 200, block=(16, 64))
    rows, cols = torch.arange(40) // 16, torch.arange(200) // 64
    expected = w.codes.float() * w.scales[rows][:, cols]
    assert torch.equal(w.dequantize(), expected) and w.scales.shape == (3, 4)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("axis", [0, 1])
def test_split_and_join_are_inverses(make, lead, axis):
    w = make(lead=lead)
    sizes = (16, 16) if axis == 0 else (64, 128, 64)
    parts = w.split(axis, sizes)
    for part, piece in zip(parts, w.dequantize().split(sizes, axis - 2), strict=True):
        assert part.shape[axis] == piece.shape[axis - 2] and torch.equal(part.dequantize(), piece)
    assert identical(parts[0].join(axis, parts[1:]), w)
    assert w.num_experts == (3 if lead else None)


@pytest.mark.parametrize("make", MAKERS)
def test_experts_stack(make):
    one, two = make(seed=1), make(seed=2)
    both = stack((one, two))
    assert both.shape == one.shape and both.num_experts == 2 and both.nbytes == one.nbytes + two.nbytes
    assert torch.equal(both.dequantize(), torch.stack([one.dequantize(), two.dequantize()]))


@pytest.mark.parametrize("axis", [0, 1])
def test_act_order_splits_both_ways(axis):
    w = int_group(act_order=True)
    sizes = (8, 24) if axis == 0 else (96, 160)
    parts = w.split(axis, sizes)
    assert torch.equal(torch.cat([p.dequantize() for p in parts], axis), w.dequantize())
    assert identical(parts[0].join(axis, parts[1:]), w)


def test_cuts_through_groups_are_refused():
    with pytest.raises(FormatError, match="cut a group: cut at multiples of 64"):
        int_group(group=64).split(1, (32, 224))
    with pytest.raises(FormatError, match="cut a group"):
        fp8_block().split(0, (8, 24))
    with pytest.raises(FormatError, match="cut a group: cut at multiples of 32"):
        int_group(bits=3, group=None).split(1, (40, 216))
    with pytest.raises(FormatError, match="add up"):
        dense().split(0, (16, 15))


def test_a_partial_last_group_stays_last():
    w = int_group(8, 160, group=64)
    a, b = w.split(1, (128, 32))
    assert b.num_groups == 1 and identical(a.join(1, (b,)), w)
    with pytest.raises(FormatError, match="groups hold 64"):
        b.join(1, (a,))


def test_joins_that_would_lie_are_refused():
    with pytest.raises(FormatError, match="bits"):
        int_group(bits=4).join(0, (int_group(bits=8),))
    with pytest.raises(FormatError, match="tensors differ"):
        int_group().join(0, (int_group(asym=False),))
    with pytest.raises(FormatError, match="Dense"):
        int_group().join(0, (dense(),))
    with pytest.raises(FormatError, match="shapes"):
        dense().join(0, (dense(m=128),))
    with pytest.raises(FormatError, match="shares differs"):
        fp8_tensor().join(0, (Fp8Tensor(fp8_codes(32, 256), torch.full((1, 1), 0.5)),))
    with pytest.raises(FormatError, match="shares differs"):
        int_group(act_order=True).join(0, (int_group(act_order=True, seed=5),))


def test_fuse_keeps_classes_where_it_can(caplog):
    quarter, half = fp8_tensor(), Fp8Tensor(fp8_codes(16, 256), torch.full((1, 1), 0.5))
    fused = fuse((quarter, half))
    assert isinstance(fused, Fp8Channel) and not caplog.records
    assert torch.equal(fused.dequantize(), torch.cat([quarter.dequantize(), half.dequantize()]))
    mixed = fuse((int_group(), dense()))
    assert isinstance(mixed, Dense) and mixed.value.dtype == torch.bfloat16
    assert "IntGroup with Dense" in caplog.text
    assert fuse((quarter,)) is quarter


def test_construction_checks_shapes_and_dtypes():
    w = int_group()
    with pytest.raises(FormatError, match="shapes disagree: scales"):
        IntGroup(w.codes, w.scales[:, :2], None, 4, 64, 256)
    with pytest.raises(FormatError, match="zeros has dtype"):
        IntGroup(w.codes, w.scales, w.zeros.int(), 4, 64, 256)
    with pytest.raises(FormatError, match="not 5"):
        IntGroup(w.codes, w.scales, None, 5, 64, 256)
    with pytest.raises(FormatError, match="not torch.int32"):
        Dense(torch.zeros(2, 2, dtype=torch.int32))
    with pytest.raises(FormatError, match="config and tensors disagree"):
        Fp8Tensor(fp8_codes(4, 4), torch.ones(1, 1), activation="fp8-static")
    with pytest.raises(FormatError, match="unknown"):
        int8_channel(activation="int7")


def test_dequantize_casts_last():
    w = int_group()
    assert torch.equal(w.dequantize(torch.float16), w.dequantize().half())
    assert w.to("cpu").nbytes == w.nbytes == sum(t.nbytes for t in (w.codes, w.scales, w.zeros))
