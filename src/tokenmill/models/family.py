"""The record every family declares: `models/<model_type>.py` holds one module-level `FAMILY: Family`.

A family is a declaration. Arithmetic that others have is taken from `layers/`; new arithmetic is a block in the
family's own file. Found by file name; `ALIASES` holds model types whose file has another name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from tokenmill.errors import ConfigError
from tokenmill.kernels.ops import HeadParts
from tokenmill.layers.attention import AttentionArch, AttentionNames, Gqa
from tokenmill.layers.embedding import Embedding, build_head
from tokenmill.layers.linear import Loader
from tokenmill.layers.mlp import Gated, MlpArch, MlpLayout
from tokenmill.layers.rope import RopeFacts


@dataclass(frozen=True, slots=True)
class DecoderArch:
    """A decoder in numbers, from config.json. `logn_tokens`: trained length of LogN attention, None without it.

    `windows`: what each layer sees, by layer (empty: every layer sees everything).
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    norm_eps: float
    attention: AttentionArch
    mlp: MlpArch
    rope: RopeFacts
    max_model_tokens: int
    tied: bool
    logn_tokens: int | None = None
    windows: tuple[int | None, ...] = ()

    @property
    def groups(self) -> tuple[tuple[int | None, tuple[int, ...]], ...]:
        """KV groups: a window, and the layers that have it. Layers that see everything come first."""
        windows = self.windows or (None,) * self.num_layers
        kinds = sorted(set(windows), key=lambda w: (w is not None, w or 0))
        return tuple((kind, tuple(i for i, w in enumerate(windows) if w == kind)) for kind in kinds)

    def attention_of(self, index: int) -> AttentionArch:
        """A layer's attention: the model's, with the layer's window and KV group."""
        for group, (window, layers) in enumerate(self.groups):
            if index in layers:
                return replace(self.attention, window_tokens=window, group=group)
        raise IndexError(f"there is no layer {index}")


@dataclass(frozen=True, slots=True)
class Names:
    """Where a checkpoint keeps what. `layer` has one place for the layer's index and ends in a dot."""

    embedding: str
    norm: str
    head: str
    layer: str
    attention: AttentionNames
    mlp: MlpLayout


@dataclass(frozen=True, slots=True)
class Block:
    """A layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    attention: Gqa
    mlp: Gated


@dataclass(frozen=True, slots=True)
class QuantGroup:
    """A scale can move from `source` (a norm, or a linear's output) into the inputs of `linears`, within a layer."""

    source: str
    linears: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Twin:
    """How transformers runs this family where it has no class of the family's name: as a class it has.

    `config` turns this family's config into that class's (its `model_type` names it); `tensors` renames and regroups
    plain tensors. Written apart from the family's blocks, because it checks them.
    """

    config: Callable[[dict[str, Any]], dict[str, Any]]
    tensors: Callable[[dict[str, Tensor], dict[str, Any]], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Family:
    """`arch` reads a (text) config. `architectures` are its class names in `config.architectures`.

    `chat`, `tools`, `reasoning` name default dialects of tokenize/ and parse/. `tiny` is a small config.json in the
    form real folders have, for tests. `head` builds the output head. `twin`: how parity runs it in transformers, None
    where transformers knows it.
    """

    name: str
    architectures: tuple[str, ...]
    arch: Callable[[dict[str, Any]], DecoderArch]
    block: Callable[[DecoderArch], Block]
    names: Names
    quant: tuple[QuantGroup, ...]
    tiny: dict[str, Any]
    chat: str = ""
    tools: str = ""
    reasoning: str = ""
    aliases: tuple[str, ...] = field(default=())
    head: Callable[[Loader, str, Embedding, bool], HeadParts] = build_head
    twin: Twin | None = None


def expect_positive(config: dict[str, Any], *keys: str) -> None:
    """ConfigError where a size is missing or not a positive whole number."""
    for key in keys:
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"config.json: {key} is {value!r}; it must be a positive whole number")
