"""GLM-4 (9B, 2024, in transformers' form): Llama whose heads are turned in part, by neighbouring pairs.

A head's channels are put in an order, when it is read, in which the turn is the usual one: pair i is (i, i + K / 2),
the pairs that are not turned come last and have frequency 0. Scores do not see the order, as q and k have the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import ConfigError
from tokenmill.layers.attention import AttentionArch, Gqa, QKVNames
from tokenmill.layers.linear import Part, take_rows
from tokenmill.layers.mlp import Gated, PackedMlpNames
from tokenmill.models.family import Block, DecoderArch, Family, QuantGroup
from tokenmill.models.llama import LLAMA_ATTENTION, LLAMA_NAMES, LLAMA_TINY, decoder_arch
from tokenmill.weights.contract import Source

FRACTION = 0.5
ROPES = ("default", "linear")


@dataclass(frozen=True, slots=True)
class NeighbourPairs:
    """q, k and v as `stored` has them, with the channels of q and k in the order above."""

    stored: QKVNames

    def shapes(self, a: AttentionArch) -> dict[str, tuple[int, int]]:
        return self.stored.shapes(a)

    def read(self, source: Source, prefix: str, a: AttentionArch) -> tuple[Part, ...]:
        q, k, v = self.stored.read(source, prefix, a)
        order_K = channel_order(a.head_dim, int(a.head_dim * FRACTION))
        return (*(take_rows(part, _every_head(order_K, heads)) for part, heads in
                  ((q, a.num_heads), (k, a.num_kv_heads))), v)  # fmt: skip


def channel_order(head_dim: int, rotated: int) -> Tensor:
    """The channel that comes to each of K places."""
    still = torch.arange(rotated, head_dim)
    first, second = still.chunk(2) if len(still) else (still, still)
    return torch.cat((torch.arange(0, rotated, 2), first, torch.arange(1, rotated, 2), second))


def _every_head(order_K: Tensor, heads: int) -> Tensor:
    return (torch.arange(heads)[:, None] * len(order_K) + order_K).flatten()


PAIRS = NeighbourPairs(LLAMA_ATTENTION.qkv)
NAMES = replace(
    LLAMA_NAMES,
    attention=replace(LLAMA_ATTENTION, qkv=PAIRS),
    mlp=PackedMlpNames("post_attention_layernorm", "mlp.gate_up_proj", "mlp.down_proj"),
)

QUANT = (
    QuantGroup("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    QuantGroup("self_attn.v_proj", ("self_attn.o_proj",)),
    QuantGroup("post_attention_layernorm", ("mlp.gate_up_proj",)),
    QuantGroup("mlp.gate_up_proj", ("mlp.down_proj",)),
)

TINY: dict[str, Any] = {
    **{key: value for key, value in LLAMA_TINY.items() if key not in ("mlp_bias", "pretraining_tp", "rope_scaling")},
    "architectures": ["GlmForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "head_dim": 32,
    "model_type": "glm",
    "pad_token_id": 2,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1.5625e-07,
}


def arch(c: dict[str, Any]) -> DecoderArch:
    inner = c.get("rope_parameters") or {}
    fraction = inner.get("partial_rotary_factor", c.get("partial_rotary_factor", FRACTION))
    if fraction != FRACTION:
        raise ConfigError(f"config.json: partial_rotary_factor is {fraction}; only {FRACTION} is served here")
    whole = {**c, "partial_rotary_factor": None}
    if inner:
        whole["rope_parameters"] = {key: value for key, value in inner.items() if key != "partial_rotary_factor"}
    a = decoder_arch(whole, qkv_bias=bool(c.get("attention_bias", True)))
    if a.rope.kind not in ROPES:
        raise ConfigError(f"config.json: rope type is {a.rope.kind!r}; heads turned in part have {', '.join(ROPES)}")
    return replace(a, rope=replace(a.rope, rotated_dim=int(a.gqa.head_dim * FRACTION)))


def block(a: DecoderArch) -> Block:
    return Block(Gqa(), Gated())


FAMILY = Family(
    name="glm",
    architectures=("GlmForCausalLM",),
    arch=arch,
    block=block,
    names=NAMES,
    quant=QUANT,
    tiny=TINY,
)
