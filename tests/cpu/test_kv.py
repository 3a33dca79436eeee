"""KV kinds: bytes as promised and laid out as documented, values within the grid, failures that stay visible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokenmill.config import KV_KINDS
from tokenmill.errors import ConfigError
from tokenmill.kernels.cases.kv_write import hadamard
from tokenmill.kv.contract import KVShape
from tokenmill.kv.layout import bytes_per_block, context_index, kind_names, load_kind
from tokenmill.kv.rotate import rotate

SHAPE = KVShape(num_heads=2, head_dim=64, block_tokens=16)
CPU = torch.device("cpu")
QUANTIZED = [name for name in KV_KINDS if name != "auto"]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def written(kv, k, v, dtype=torch.float32):
    """Fresh pages with k and v at places 3, 4, ..."""
    pages = load_kind(kv).alloc(4, SHAPE, dtype, CPU)
    pages.kind.write(pages, k, v, torch.arange(3, 3 + len(k)))
    return pages


def test_the_kinds_there_are_are_the_ones_config_names():
    assert sorted(kind_names()) == sorted(KV_KINDS)


@pytest.mark.parametrize("kv", KV_KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_bytes_of_a_block_are_the_bytes_that_are_allocated(kv, dtype):
    pages = load_kind(kv).alloc(9, SHAPE, dtype, CPU)
    held = sum(plane.numel() * plane.itemsize for plane in pages.planes.values())
    assert held == (9 + 1) * bytes_per_block(kv, 2, 64, 16, dtype.itemsize)


def test_bytes_of_llama_2_7b_and_of_llama_3_8b():
    """By hand, at 128 channels: fp16 256 bytes a head, int8 132, int4 68, fp8 130, K and V each."""
    assert [bytes_per_block(kv, 32, 128, 64, 2) for kv in ("auto", "int8", "int4", "int4-plain", "fp8")] == [
        2 * 32 * 64 * size for size in (256, 132, 68, 68, 130)
    ]
    assert bytes_per_block("auto", 8, 128, 64, 2) * 32 / 64 == 131072


def test_int8_bytes_are_the_documented_formula():
    k = draw(1, 2, 64)
    pages = written("int8", k, k)
    x = k[0, 1].numpy()
    low = np.float16(x.min())
    scale = np.float16((x.max() - np.float32(low)) / np.float32(255))
    codes = np.clip(np.floor((x - np.float32(low)) / np.float32(scale) + 0.5), 0, 255)
    assert pages.planes["k"][0, 3, 1].tolist() == codes.tolist()
    assert pages.planes["k_params"][0, 3, 1].tolist() == [scale, low]


def test_int4_plain_nibbles_lie_half_a_head_apart():
    k = draw(1, 2, 64)
    packed = written("int4-plain", k, k).planes["v"][0, 3, 0]
    x = k[0, 0].numpy()
    low = np.float16(x.min())
    scale = np.float16((x.max() - np.float32(low)) / np.float32(15))
    codes = np.clip(np.floor((x - np.float32(low)) / np.float32(scale) + 0.5), 0, 15).astype(int)
    assert (packed & 15).tolist() == codes[:32].tolist()
    assert (packed >> 4).tolist() == codes[32:].tolist()


def test_int4_holds_the_plain_bytes_of_the_rotated_head():
    k, v = draw(5, 2, 64), draw(5, 2, 64, seed=1)
    rotated = written("int4", k, v)
    plain = written("int4-plain", *((x.double() @ hadamard(64)).float() for x in (k, v)))
    # fp64 and fp32 rotations may fall on either side of a rounding edge.
    for name in ("k", "v"):
        same = (rotated.planes[name] == plain.planes[name]).float().mean()
        assert same > 0.99


def test_fp8_bits_are_e4m3_of_the_scaled_value():
    k = draw(1, 2, 64)
    pages = written("fp8", k, k)
    scale = (k[0, 0].abs().max() / 448).half()
    assert pages.planes["k_scale"][0, 3, 0].item() == scale.item()
    wanted = (k[0, 0] / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(pages.planes["k"][0, 3, 0].view(torch.float8_e4m3fn).float(), wanted.float())


@pytest.mark.parametrize("kv", KV_KINDS)
def test_whole_tables_read_as_their_places_gathered(kv):
    pages = written(kv, draw(40, 2, 64), draw(40, 2, 64, seed=1))
    table = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    places = (table.long()[:, :, None] * 16 + torch.arange(16)).flatten(1)
    for whole, picked in zip(pages.kind.read(pages, table), pages.kind.gather(pages, places), strict=True):
        assert torch.equal(whole, picked)


@pytest.mark.parametrize("kv", KV_KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_still_not_finite_when_read(kv, bad):
    """And only in the head it was in."""
    k = draw(2, 2, 64)
    k[1, 0, 7] = bad
    pages = written(kv, k, k)
    for x in pages.kind.gather(pages, torch.tensor([[3, 4]])):
        finite = x[0].isfinite().all(-1)
        assert finite.tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize("kv", KV_KINDS)
def test_writes_to_nowhere_change_no_block(kv):
    pages = written(kv, draw(20, 2, 64), draw(20, 2, 64, seed=1))
    before = {name: plane[:-1].clone() for name, plane in pages.planes.items()}
    pages.kind.write(pages, draw(3, 2, 64, seed=2), draw(3, 2, 64, seed=3), torch.full((3,), -1))
    assert all(torch.equal(before[name], plane[:-1]) for name, plane in pages.planes.items())


@pytest.mark.parametrize("kv", KV_KINDS)
def test_a_token_is_stored_alike_alone_and_in_a_batch(kv):
    """Quantized caches give the same values under every chunking because each token's bytes are its own."""
    k, v = draw(30, 2, 64), draw(30, 2, 64, seed=1)
    whole = written(kv, k, v)
    parts = load_kind(kv).alloc(4, SHAPE, torch.float32, CPU)
    for start in range(0, 30, 7):
        places = torch.arange(3 + start, 3 + min(start + 7, 30))
        parts.kind.write(parts, k[start : start + 7], v[start : start + 7], places)
    assert all(torch.equal(whole.planes[name], parts.planes[name]) for name in whole.planes)


def test_rotation_spares_4_bits_from_a_loud_channel():
    x = draw(64, 2, 64)
    x[:, :, 11] *= 20
    errors = {}
    for kv in ("int4", "int4-plain", "int8"):
        pages = load_kind(kv).alloc(4, SHAPE, torch.float32, CPU)
        pages.kind.write(pages, x, x, torch.arange(64))
        errors[kv] = (pages.kind.gather(pages, torch.arange(64)[None])[0][0] - x).square().mean().sqrt()
    assert errors["int4"] < errors["int4-plain"] / 2
    assert errors["int8"] < errors["int4"]


@pytest.mark.parametrize("size", [2, 32, 128])
def test_the_rotation_is_sylvesters_and_its_own_inverse(size):
    x = draw(5, size)
    torch.testing.assert_close(rotate(x).double(), x.double() @ hadamard(size), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rotate(rotate(x)), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kv", "size", "said"), [("int4", 96, "power of two"), ("int4-plain", 33, "even head_dim")])
def test_a_head_that_a_kind_cannot_hold_is_refused_with_a_way_out(kv, size, said):
    with pytest.raises(ConfigError, match=said):
        load_kind(kv).alloc(1, KVShape(1, size, 16), torch.float32, CPU)


def test_an_unknown_kind_is_refused_with_what_there_is():
    with pytest.raises(ConfigError, match="int4-plain"):
        load_kind("int2")


def test_places_behind_a_row_repeat_its_last_token():
    tables = torch.tensor([[5, 2, 9], [1, 0, 0]], dtype=torch.int32)
    index = context_index(tables, torch.tensor([6, 1]), 4, 7)
    assert index.tolist() == [[20, 21, 22, 23, 8, 9, 9, 9], [4] * 8]


@pytest.mark.parametrize("kv", QUANTIZED)
@pytest.mark.parametrize("value", [0.0, 1e-7, -3.0, 250.0])
def test_a_constant_vector_comes_back(kv, value):
    """Its range is nothing: a scale of 0 would divide by it. Rotated it is one loud value among zeros, whose grid is as
    exact as an fp16 scale."""
    x = torch.full((4, 2, 64), value)
    pages = written(kv, x, x)
    for back in pages.kind.gather(pages, torch.arange(3, 7)[None]):
        torch.testing.assert_close(back[0], x, rtol=2e-2 if kv == "int4" else 2e-3, atol=1e-4)
