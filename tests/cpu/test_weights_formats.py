"""Every disk format against layouts packed by other code: read gives the numbers, write gives the bytes back."""

import pytest
import torch
from tests.support import disk_layouts

from tokenmill.errors import FormatError
from tokenmill.weights.classes import Fp8Block, Fp8Channel, Fp8Tensor, Int8Channel
from tokenmill.weights.format import detect, load_format
from tokenmill.weights.record import identical, same_bits
from tokenmill.weights.scheme import Scheme

N, M = 32, 192


def parts(bits=4, group=64, low=0, high=None, seed=0, order=False, dtype=torch.float16):
    g = torch.Generator().manual_seed(seed)
    groups = 1 if group is None else -(-M // group)
    q = torch.randint(0, 1 << bits, (N, M), generator=g)
    z = torch.randint(low, (1 << bits) if high is None else high, (N, groups), generator=g)
    s = (torch.randn(N, groups, generator=g) * 0.05).to(dtype)
    index = torch.arange(M) // (group or M)
    return q, z, s, index[torch.randperm(M, generator=g)] if order else index


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert same_bits(a[name].contiguous(), b[name].contiguous()), name


def through(tensors, config, q, z, s, g_idx):
    """read(tensors) means the documented numbers; write gives the tensors back; the config survives its manifest."""
    scheme = detect({"quantization_config": config})
    fmt = load_format(scheme.format)
    weight = fmt.read(tensors, scheme)
    assert weight.shape == (N, M)
    assert torch.equal(weight.dequantize(), disk_layouts.dequantize(q, z, s, g_idx))
    again = detect({"quantization_config": fmt.manifest(scheme)})
    same(fmt.write(weight, again), tensors)
    assert identical(fmt.read(fmt.write(weight, again), again), weight)
    return weight


@pytest.mark.parametrize("group", [32, 64, None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_awq(group, dtype):
    q, z, s, index = parts(4, group, dtype=dtype)
    config = {"quant_method": "awq", "bits": 4, "group_size": group or -1, "zero_point": True, "version": "gemm"}
    through(disk_layouts.awq(q, z, s), config, q, z, s, index)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [64, None])
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq(bits, group, order, version):
    offset = 1 if version == "gptq" else 0
    q, z, s, g_idx = parts(bits, group, offset, (1 << bits) + offset, order=order)
    config = {"quant_method": "gptq", "bits": bits, "group_size": group or -1, "sym": False, "desc_act": order}
    config["checkpoint_format"] = version
    weight = through(disk_layouts.gptq(q, z, s, bits, g_idx, offset), config, q, z, s, g_idx)
    assert (weight.g_idx is not None) == (order and group is not None)


def test_gptq_symmetric_zero_words():
    """The published vector: a zero of 8 stands as 7 in v1, so words are 0x77777777 (and 0x88888888 in v2)."""
    q, _, s, index = parts()
    z = torch.full(s.shape, 8)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}
    for version, word in (("gptq", 0x77777777), ("gptq_v2", 0x88888888 - (1 << 32))):
        tensors = disk_layouts.gptq(q, z, s, 4, index, 1 if version == "gptq" else 0)
        assert (tensors["qzeros"] == word).all()
        assert through(tensors, config | {"checkpoint_format": version}, q, z, s, index).zeros is None


def test_gptq_version_is_never_guessed():
    """The same bytes are one off in the other version; only the config tells them apart."""
    q, z, s, index = parts(low=1, high=15)
    tensors = disk_layouts.gptq(q, z, s, 4, index, 0)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False, "desc_act": False}
    v2 = load_format("gptq").read(tensors, detect({"quantization_config": config | {"checkpoint_format": "gptq_v2"}}))
    v1 = load_format("gptq").read(tensors, detect({"quantization_config": config}))
    assert torch.equal(v1.zeros, v2.zeros + 1) and torch.equal(v2.zeros.long(), z)
    with pytest.raises(FormatError, match="marlin"):
        detect({"quantization_config": config | {"checkpoint_format": "marlin"}})


def test_gptqmodel_word_subtraction_is_undone():
    """GPTQModel subtracts 0x1111.. from the whole word: a zero of 0 borrows, and comes back."""
    q, z, s, index = parts()
    assert (z == 0).any()
    tensors = disk_layouts.gptq(q, z, s, 4, index, 0)
    borrowed = (tensors["qzeros"].long() - 0x11111111) & 0xFFFFFFFF
    tensors["qzeros"] = torch.where(borrowed >= 1 << 31, borrowed - (1 << 32), borrowed).to(torch.int32)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False, "desc_act": False}
    config |= {"checkpoint_format": "gptq", "meta": {"quantizer": ["gptqmodel:7.4.0"]}}
    weight = load_format("gptq").read(tensors, detect({"quantization_config": config}))
    assert torch.equal(weight.dequantize(), disk_layouts.dequantize(q, z, s, index))


def ct_config(bits, group, symmetric, order=False):
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False}
    weights |= {"strategy": "channel" if group is None else "group", "group_size": group}
    weights["actorder"] = "group" if order else None
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [64, None])
@pytest.mark.parametrize("symmetric", [False, True])
def test_compressed_tensors_packed(bits, group, symmetric):
    q, z, s, index = parts(bits, group, dtype=torch.bfloat16)
    z = torch.full_like(z, 1 << (bits - 1)) if symmetric else z
    tensors = disk_layouts.compressed(q, None if symmetric else z, s, bits)
    through(tensors, ct_config(bits, group, symmetric), q, z, s, index)


def test_compressed_tensors_act_order():
    q, z, s, g_idx = parts(order=True)
    weight = through(disk_layouts.compressed(q, z, s, 4, g_idx), ct_config(4, 64, False, True), q, z, s, g_idx)
    assert weight.g_idx is not None


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_peer_packs_the_same_words(bits):
    """Against the compressed-tensors package's own packer, codes along M and zeros along N."""
    peer = pytest.importorskip("compressed_tensors.compressors", reason="no compressed-tensors")
    q, z, s, _ = parts(bits)
    shift = 1 << (bits - 1)
    ours = disk_layouts.compressed(q, z, s, bits)
    assert torch.equal(peer.pack_to_int32((q - shift).to(torch.int8), bits, packed_dim=1), ours["weight_packed"])
    assert torch.equal(peer.pack_to_int32((z - shift).to(torch.int8), bits, packed_dim=0), ours["weight_zero_point"])


def fp8(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.float8_e4m3fn)


def scales(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5)) + 0.1


def ct_plain(kind, strategy, inputs=None):
    weights = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False}
    if strategy == "block":
        weights["block_structure"] = [128, 128]
    form = "int-quantized" if kind == "int" else "float-quantized"
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


INT8 = torch.randint(-128, 128, (N, M), generator=torch.Generator().manual_seed(1)).to(torch.int8)
DYNAMIC = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
STATIC = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
GROUPED = DYNAMIC | {"strategy": "group", "group_size": 128}
PLAIN_CASES = {
    "smooth_quant int8": (
        {"quant_method": "smooth_quant", "quant_dtype": "int8"},
        {"weight": INT8, "scale": scales(N, 1)}, Int8Channel, lambda t: t["weight"].float() * t["scale"],
    ),
    "smooth_quant fp8": (
        {"quant_method": "smooth_quant", "quant_dtype": "float8_e4m3fn"},
        {"weight": fp8(N, M), "scale": scales(N, 1)}, Fp8Channel, lambda t: t["weight"].float() * t["scale"],
    ),
    "ct int8": (
        ct_plain("int", "channel", DYNAMIC | {"type": "int"}),
        {"weight": INT8, "weight_scale": scales(N, 1)}, Int8Channel, lambda t: t["weight"].float() * t["weight_scale"],
    ),
    "ct fp8 tensor static": (
        ct_plain("float", "tensor", STATIC),
        {"weight": fp8(N, M), "weight_scale": scales(1), "input_scale": scales(1)}, Fp8Tensor,
        lambda t: t["weight"].float() * t["weight_scale"],
    ),
    "ct fp8 channel": (
        ct_plain("float", "channel", DYNAMIC),
        {"weight": fp8(N, M), "weight_scale": scales(N, 1)}, Fp8Channel,
        lambda t: t["weight"].float() * t["weight_scale"],
    ),
    "ct fp8 block": (
        ct_plain("float", "block", GROUPED),
        {"weight": fp8(N, M), "weight_scale": scales(1, 2)}, Fp8Block,
        lambda t: t["weight"].float() * t["weight_scale"].repeat_interleave(128, 1)[:, :M],
    ),
    "fp8 block": (
        {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        {"weight": fp8(N, M), "weight_scale_inv": scales(1, 2)}, Fp8Block,
        lambda t: t["weight"].float() * t["weight_scale_inv"].repeat_interleave(128, 1)[:, :M],
    ),
    "fp8 tensor": (
        {"quant_method": "fp8", "activation_scheme": "dynamic"},
        {"weight": fp8(N, M), "weight_scale": scales(1)}, Fp8Tensor, lambda t: t["weight"].float() * t["weight_scale"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLAIN_CASES)
def test_eight_bit_formats(case):
    config, tensors, kind, formula = PLAIN_CASES[case]
    scheme = detect({"quantization_config": config})
    fmt = load_format(scheme.format)
    weight = fmt.read(tensors, scheme)
    assert type(weight) is kind and weight.shape == (N, M)
    assert torch.equal(weight.dequantize(), formula(tensors))
    again = detect({"quantization_config": fmt.manifest(scheme)})
    same(fmt.write(weight, again), tensors)


REFUSED = {
    "awq gemv": ({"quant_method": "awq", "version": "gemv"}, "gemv"),
    "awq 8 bits": ({"quant_method": "awq", "bits": 8}, "4-bit"),
    "gptq 5 bits": ({"quant_method": "gptq", "bits": 5}, "2, 3, 4, 8"),
    "gptq group 0": ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size"),
    "fp8 e5m2": ({"quant_method": "fp8", "fmt": "e5m2"}, "e4m3"),
    "fp8 block of one": ({"quant_method": "fp8", "weight_block_size": [128]}, "two positive"),
    "smooth_quant int4": ({"quant_method": "smooth_quant", "quant_dtype": "int4"}, "int4"),
    "ct without groups": ({"quant_method": "compressed-tensors"}, "config_groups"),
    "ct int4 unpacked": (ct_plain("int", "tensor"), "not read"),
    "nobody's": ({"quant_method": "hqq"}, "hqq"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_refused_by_name(case):
    config, word = REFUSED[case]
    with pytest.raises(FormatError, match=word):
        detect({"quantization_config": config})


def test_tensors_that_disagree_with_the_config():
    q, z, s, index = parts()
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
    awq = detect({"quantization_config": config})
    with pytest.raises(FormatError, match="scales"):
        load_format("awq").read(disk_layouts.awq(q, z, s), awq)
    tensors = disk_layouts.gptq(q, z, s, 4, index, 0)
    scheme = Scheme("gptq", "int", "gptq_v2", 4, 64, symmetric=False)
    with pytest.raises(FormatError, match="outside the 3 groups"):
        load_format("gptq").read(tensors | {"g_idx": tensors["g_idx"] + 1}, scheme)
    with pytest.raises(FormatError, match="qweight has dtype"):
        load_format("gptq").read(tensors | {"qweight": tensors["qweight"].to(torch.int64)}, scheme)
    with pytest.raises(FormatError, match="weight_zero_point is missing"):
        load_format("compressed_tensors").read(
            disk_layouts.compressed(q, None, s, 4), detect({"quantization_config": ct_config(4, 64, False)})
        )


def test_what_a_format_cannot_hold_is_refused():
    q, z, s, _ = parts(low=0)
    asym = load_format("awq").read(disk_layouts.awq(q, z, s), Scheme("awq", "int", "gemm", 4, 64, symmetric=False))
    with pytest.raises(FormatError, match="write gptq_v2"):
        load_format("gptq").write(asym, Scheme("gptq", "int", "gptq", 4, 64))
    with pytest.raises(FormatError, match="write it asymmetric"):
        load_format("compressed_tensors").write(asym, detect({"quantization_config": ct_config(4, 64, True)}))
    q, z, s, g_idx = parts(order=True, low=1)
    ordered = load_format("gptq").read(
        disk_layouts.gptq(q, z, s, 4, g_idx, 0), Scheme("gptq", "int", "gptq_v2", 4, 64, symmetric=False)
    )
    with pytest.raises(FormatError, match="act-order"):
        load_format("awq").write(ordered, Scheme("awq", "int", "gemm", 4, 64))


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("group", [64, None])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_peer_decompresses_what_we_write(bits, group, symmetric):
    """compressed-tensors' own decompressor, told by our manifest, gives the numbers our class gives."""
    peer = pytest.importorskip("compressed_tensors", reason="no compressed-tensors")
    from compressed_tensors.compressors import PackedQuantizationCompressor

    q, z, s, _ = parts(bits, group, dtype=torch.float32)
    scheme = detect({"quantization_config": ct_config(bits, group, symmetric)})
    fmt = load_format("compressed_tensors")
    z = torch.full_like(z, 1 << (bits - 1)) if symmetric else z
    weight = fmt.read(disk_layouts.compressed(q, None if symmetric else z, s, bits), scheme)
    config = peer.quantization.QuantizationConfig.model_validate(fmt.manifest(scheme))
    theirs = PackedQuantizationCompressor.decompress(fmt.write(weight, scheme), config.config_groups["group_0"])
    assert torch.equal(theirs["weight"].float(), weight.dequantize())
