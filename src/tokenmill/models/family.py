"""The record every family declares: `models/<model_type>.py` holds one module-level `FAMILY: Family`.

A family is a declaration. Arithmetic that others have is taken from `layers/`; new arithmetic is a block in the
family's own file. Found by file name; `ALIASES` holds model types whose file has another name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from tokenmill.errors import ConfigError
from tokenmill.kernels.meta import RowMeta, Stream
from tokenmill.kernels.ops import HeadParts, Norm, Ops
from tokenmill.kv.contract import KVPages
from tokenmill.layers.attention import AttentionArch, AttentionNames
from tokenmill.layers.embedding import Embedding, build_head
from tokenmill.layers.linear import Loader
from tokenmill.layers.mla import MlaArch, MlaNames
from tokenmill.layers.mlp import MlpArch, MlpLayout
from tokenmill.layers.moe import MoeArch
from tokenmill.layers.rope import RopeFacts
from tokenmill.layers.score import Score
from tokenmill.weights.contract import Source


@dataclass(frozen=True, slots=True)
class DecoderArch:
    """A decoder in numbers, from config.json. `logn_tokens`: trained length of LogN attention, None without it.

    `windows`: what each layer sees, by layer (empty: every layer sees everything). `window_rope`: the rotation of
    layers with a window where it is another. `sparse`: the mixture of experts of every layer that is not in
    `dense_layers` (None: no layer has one). `embedding_scale`: on what the embedding gives. `logit_cap`: logits
    are bent so as to stay below it.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    norm_eps: float
    attention: AttentionArch | MlaArch
    mlp: MlpArch
    rope: RopeFacts
    max_model_tokens: int
    tied: bool
    logn_tokens: int | None = None
    windows: tuple[int | None, ...] = ()
    window_rope: RopeFacts | None = None
    sparse: MoeArch | None = None
    dense_layers: tuple[int, ...] = ()
    embedding_scale: float = 1.0
    logit_cap: float | None = None

    @property
    def groups(self) -> tuple[tuple[int | None, tuple[int, ...]], ...]:
        """KV groups: a window, and the layers that have it. Layers that see everything come first."""
        windows = self.windows or (None,) * self.num_layers
        kinds = sorted(set(windows), key=lambda w: (w is not None, w or 0))
        return tuple((kind, tuple(i for i, w in enumerate(windows) if w == kind)) for kind in kinds)

    @property
    def ropes(self) -> tuple[RopeFacts, ...]:
        """The rotation of each KV group; one for all of them where they do not differ."""
        if self.window_rope is None:
            return (self.rope,)
        return tuple(self.rope if window is None else self.window_rope for window, _ in self.groups)

    @property
    def gqa(self) -> AttentionArch:
        """The attention of a family that has no latent."""
        if not isinstance(self.attention, AttentionArch):
            raise TypeError("this family's attention is a latent one")
        return self.attention

    def is_sparse(self, index: int) -> bool:
        return self.sparse is not None and index not in self.dense_layers

    def attention_of(self, index: int) -> AttentionArch | MlaArch:
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
    attention: AttentionNames | MlaNames
    mlp: MlpLayout
    sparse: SparseLayout | None = None


class SparseLayout(Protocol):
    """How a checkpoint stores a mixture of experts; `norm`, `post_norm` as `MlpLayout` has them."""

    @property
    def norm(self) -> str: ...

    @property
    def post_norm(self) -> str: ...

    def shapes(self, a: MoeArch) -> dict[str, tuple[int, int]]:
        """Linears by name within the layer, with their (N, M)."""
        ...

    def plain(self, a: MoeArch) -> dict[str, tuple[int, ...]]:
        """Other tensors by full name within the layer, norms left out."""
        ...


class AttentionBlock(Protocol):
    """Half a layer: x + attention(norm(x)). `build` makes the parts that `run` runs."""

    def build(self, loader: Loader, names: Any, prefix: str, a: Any, eps: float) -> Any: ...

    def run(
        self, ops: Ops, stream: Stream, parts: Any, following: Norm, rows: RowMeta, pages: KVPages
    ) -> Stream: ...


class MlpBlock(Protocol):
    """Half a layer: x + mlp(norm(x)). `build` makes the parts that `run` runs."""

    def build(self, loader: Loader, names: Any, prefix: str, a: Any, eps: float) -> Any: ...

    def run(self, ops: Ops, stream: Stream, parts: Any, following: Norm) -> Stream: ...


@dataclass(frozen=True, slots=True)
class Block:
    """A layer: x + attention(norm(x)), then x + mlp(norm(x)); `sparse` in place of `mlp` in layers with experts."""

    attention: AttentionBlock
    mlp: MlpBlock
    sparse: MlpBlock | None = None


@dataclass(frozen=True, slots=True)
class MlpPlace:
    """A layer's second half: its block, its names and its numbers."""

    block: MlpBlock
    names: MlpLayout | SparseLayout
    arch: Any


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


def plain_head(loader: Loader, name: str, embedding: Embedding, arch: DecoderArch) -> HeadParts:
    return build_head(loader, name, embedding, arch.tied)


def as_stored(source: Source) -> Source:
    return source


@dataclass(frozen=True, slots=True)
class Family:
    """`arch` reads a (text) config. `architectures` are its class names in `config.architectures`.

    `chat`, `tools`, `reasoning` name default dialects of tokenize/ and parse/. `tiny` is a small config.json in the
    form real folders have, for tests. `head` builds the output head. `twin`: how parity runs it in transformers, None
    where transformers knows it. `source`: the checkpoint as this family's blocks read it. `score`: of
    a reward model, in place of the head.
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
    head: Callable[[Loader, str, Embedding, DecoderArch], HeadParts] = plain_head
    twin: Twin | None = None
    source: Callable[[Source], Source] = as_stored
    score: Score | None = None


def mlp_of(family: Family, arch: DecoderArch, index: int) -> MlpPlace:
    """What stands behind layer `index`'s attention."""
    block = family.block(arch)
    if not arch.is_sparse(index):
        return MlpPlace(block.mlp, family.names.mlp, arch.mlp)
    if block.sparse is None or family.names.sparse is None:
        raise ConfigError(f"config.json asks for experts in layer {index}, which family {family.name} does not have")
    return MlpPlace(block.sparse, family.names.sparse, arch.sparse)


def expect_served(wanted: dict[str, tuple[Any, Any]]) -> None:
    """Each key's value and the one that is served. ConfigError where they differ."""
    for key, (value, served) in wanted.items():
        if value != served:
            raise ConfigError(f"config.json: {key} is {value!r}; only {served!r} is served")


def expect_positive(config: dict[str, Any], *keys: str) -> None:
    """ConfigError where a size is missing or not a positive whole number."""
    for key in keys:
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"config.json: {key} is {value!r}; it must be a positive whole number")
