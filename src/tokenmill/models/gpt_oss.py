"""GPT-OSS: heads with a sink, windows in every second layer, biases, and experts with a gate of their own.

E experts, D hidden, F an expert's width. A layer's experts lie in two tensors: plain ones in-features first, MXFP4 ones
out-features first; gate and up rows take turns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import ConfigError, FormatError
from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import MoeParts, Norm, Ops, Routing
from tokenmill.layers.attention import Gqa
from tokenmill.layers.linear import Loader, Part
from tokenmill.layers.mlp import Gated
from tokenmill.layers.moe import MoeArch, plain, prepare
from tokenmill.models.family import Block, DecoderArch, Family, expect_positive
from tokenmill.models.gemma2 import windows
from tokenmill.models.llama import LLAMA_ATTENTION, LLAMA_NAMES, LLAMA_TINY, decoder_arch
from tokenmill.weights.classes import MX_GROUP, Dense, Mxfp4
from tokenmill.weights.contract import Source, Weight
from tokenmill.weights.record import unstack

ALPHA, LIMIT = 1.702, 7.0


@dataclass(frozen=True, slots=True)
class StackedExperts:
    """Names within a layer: all experts' gate and up rows in one tensor, all their down rows in another."""

    norm: str = "post_attention_layernorm"
    router: str = "mlp.router"
    gate_up: str = "mlp.experts.gate_up_proj"
    down: str = "mlp.experts.down_proj"

    @property
    def post_norm(self) -> str:
        return ""

    def shapes(self, a: MoeArch) -> dict[str, tuple[int, int]]:
        """None: no linear here has a name of its own."""
        return {}

    def plain(self, a: MoeArch) -> dict[str, tuple[int, ...]]:
        """As a folder without quantization has them."""
        E, D, F = a.num_experts, a.hidden_size, a.ffn_size
        return {
            f"{self.router}.weight": (E, D),
            f"{self.router}.bias": (E,),
            self.gate_up: (E, D, 2 * F),
            f"{self.gate_up}_bias": (E, 2 * F),
            self.down: (E, F, D),
            f"{self.down}_bias": (E, D),
        }


@dataclass(frozen=True, slots=True)
class ClampedMoe:
    """A mixture of experts whose gate is clamped above and whose up rows are clamped on both sides."""

    def build(self, loader: Loader, names: StackedExperts, prefix: str, a: MoeArch, eps: float) -> MoeParts:
        D, F, E = a.hidden_size, a.ffn_size, a.num_experts
        inner = read_experts(loader.source, prefix + names.gate_up, (E, 2 * F, D), F)
        outer = read_experts(loader.source, prefix + names.down, (E, D, F), F)
        return MoeParts(
            norm=Norm(loader.vector(f"{prefix}{names.norm}.weight", D), eps),
            router_ED=plain(loader, f"{prefix}{names.router}.weight", (E, D)),
            routing=a.routing,
            gate_up=prepare(((part,) for part in inner), "column", loader),
            down=prepare(((part,) for part in outer), "row", loader),
            reduce=loader.group.all_reduce,
            router_bias_E=plain(loader, f"{prefix}{names.router}.bias", (E,)),
            activation=clamped,
        )

    def run(self, ops: Ops, stream: Stream, parts: MoeParts, following: Norm) -> Stream:
        return ops.moe_block(stream, parts, following)


def clamped(gate_up_P2F: Tensor) -> Tensor:
    """(up + 1) gate sigmoid(alpha gate); gate in even places, up in odd ones. Out: [P, F]."""
    gate_PF = gate_up_P2F[..., 0::2].clamp(max=LIMIT)
    up_PF = gate_up_P2F[..., 1::2].clamp(-LIMIT, LIMIT)
    return (up_PF + 1) * gate_PF * torch.sigmoid(ALPHA * gate_PF)


def read_experts(source: Source, name: str, shape: tuple[int, int, int], width: int) -> tuple[Part, ...]:
    """One part for each expert, (N, M) as everywhere. Ranks cut the width between MXFP4's groups."""
    E, N, M = shape
    weights = _stack(source, name)
    found = {(len(weights), *weight.shape) for weight in weights}
    if found != {shape}:
        raise FormatError(f"{name} has shape {sorted(found)}; config.json asks for {shape}")
    bias_EN = source.tensor(f"{name}_bias")
    if tuple(bias_EN.shape) != (E, N):
        raise FormatError(f"{name}_bias has shape {tuple(bias_EN.shape)}; config.json asks for {(E, N)}")
    units = width // MX_GROUP if isinstance(weights[0], Mxfp4) else width
    return tuple(Part(weight, bias, units) for weight, bias in zip(weights, bias_EN, strict=True))


def _stack(source: Source, name: str) -> tuple[Weight, ...]:
    if not source.has(f"{name}_blocks"):
        return tuple(Dense(value.T.contiguous()) for value in source.tensor(name))
    weight = source.weight(name)
    if not isinstance(weight, Mxfp4):
        raise FormatError(f"{name}_blocks is not read as MXFP4: is config.json's quantization_config right?")
    return unstack(weight)


TINY: dict[str, Any] = {
    **{key: value for key, value in LLAMA_TINY.items() if key not in ("mlp_bias", "pretraining_tp")},
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "experts_per_token": 4,
    "head_dim": 64,
    "intermediate_size": 96,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "max_position_embeddings": 256,
    "model_type": "gpt_oss",
    "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 4.0, "original_max_position_embeddings": 64,
        "rope_type": "yarn", "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 24,
    "swiglu_limit": 7.0,
}  # fmt: skip


def arch(c: dict[str, Any]) -> DecoderArch:
    expect_positive(c, "num_local_experts", "num_experts_per_tok")
    for key, served in (("swiglu_limit", LIMIT), ("swiglu_alpha", ALPHA)):
        if float(c.get(key, served)) != served:
            raise ConfigError(f"config.json: {key} is {c[key]!r}; only {served} is served for this family")
    bias = bool(c.get("attention_bias", True))
    a = decoder_arch(c, qkv_bias=bias, out_bias=bias)
    kinds = c.get("layer_types") or ["full_attention" if i % 2 else "sliding_attention" for i in range(a.num_layers)]
    # The softmax over the chosen logits alone is the softmax over all, made to sum to 1 over the chosen.
    routing = Routing(c["num_experts_per_tok"])
    sparse = MoeArch(a.hidden_size, c["intermediate_size"], c["num_local_experts"], routing)
    return replace(a, windows=windows(kinds, c), sparse=sparse)


def block(a: DecoderArch) -> Block:
    return Block(Gqa(), Gated(), ClampedMoe())


FAMILY = Family(
    name="gpt_oss",
    architectures=("GptOssForCausalLM",),
    arch=arch,
    block=block,
    names=replace(
        LLAMA_NAMES, attention=replace(LLAMA_ATTENTION, sinks="self_attn.sinks"), sparse=StackedExperts()
    ),
    quant=(),
    tiny=TINY,
)
