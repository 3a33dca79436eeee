"""Gemma: Llama with norms stored as their distance from 1, a scaled embedding and GELU in the gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn import functional

from tokenmill.errors import ConfigError
from tokenmill.kernels.meta import Stream
from tokenmill.kernels.ops import MlpParts, Norm, Ops
from tokenmill.layers.attention import Gqa
from tokenmill.layers.linear import Loader
from tokenmill.layers.mlp import Gated, MlpArch, MlpLayout
from tokenmill.models.family import Block, DecoderArch, Family
from tokenmill.models.llama import LLAMA_NAMES, LLAMA_TINY, decoder_arch
from tokenmill.weights.contract import Source, Weight

ACTIVATIONS = ("gelu_pytorch_tanh", "gelu_new", "gelu")
LEFT_OUT = ("mlp_bias", "pretraining_tp", "tie_word_embeddings", "rope_scaling")
TINY: dict[str, Any] = {
    **{key: value for key, value in LLAMA_TINY.items() if key not in LEFT_OUT},
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "model_type": "gemma",
    "rms_norm_eps": 1e-06,
}


@dataclass(frozen=True, slots=True)
class NormsFromOne:
    """A checkpoint whose norms are stored around 0: read with 1 added, in fp32."""

    stored: Source

    def weight(self, name: str) -> Weight:
        return self.stored.weight(name)

    def tensor(self, name: str) -> Tensor:
        value = self.stored.tensor(name)
        return value.float() + 1.0 if name.endswith("norm.weight") else value

    def has(self, name: str) -> bool:
        return self.stored.has(name)

    def names(self) -> tuple[str, ...]:
        return self.stored.names()


@dataclass(frozen=True, slots=True)
class GeluGated:
    """The gated MLP with GELU (its tanh form) in place of SiLU."""

    def build(self, loader: Loader, names: MlpLayout, prefix: str, a: MlpArch, eps: float) -> MlpParts:
        return Gated().build(loader, names, prefix, a, eps)

    def run(self, ops: Ops, stream: Stream, parts: MlpParts, following: Norm) -> Stream:
        x_TD = ops.primitives.rms_norm(stream.residual_TD, parts.norm.weight_D, parts.norm.eps)
        gate_TF, up_TF = parts.gate_up(x_TD).chunk(2, -1)
        return ops.mlp_out(stream, functional.gelu(gate_TF, approximate="tanh") * up_TF, parts, following)


def arch(c: dict[str, Any]) -> DecoderArch:
    activation = c.get("hidden_activation") or c.get("hidden_act") or ACTIVATIONS[0]
    if activation not in ACTIVATIONS:
        raise ConfigError(f"config.json: hidden_activation is {activation!r}; only gelu_pytorch_tanh is served here")
    bias = bool(c.get("attention_bias", False))
    plain = {key: value for key, value in c.items() if key not in ("hidden_act", "hidden_activation")}
    a = decoder_arch(plain, qkv_bias=bias, out_bias=bias, tied=True)
    return replace(a, embedding_scale=a.hidden_size**0.5)


def block(a: DecoderArch) -> Block:
    return Block(Gqa(), GeluGated())


FAMILY = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    arch=arch,
    block=block,
    names=LLAMA_NAMES,
    quant=(),
    tiny=TINY,
    chat="gemma",
    source=NormsFromOne,
)
