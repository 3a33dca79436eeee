"""A decoder assembled from a family's declaration: the one Model of all Llama-shaped families.

T packed tokens of all rows, D hidden, V vocabulary, R chosen positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import ConfigError
from tokenmill.kernels.expect import expect
from tokenmill.kernels.meta import RowMeta, Stream
from tokenmill.kernels.ops import AttentionParts, MlaParts, Norm
from tokenmill.kv.contract import KVPages
from tokenmill.layers.embedding import Embedding
from tokenmill.layers.linear import Loader
from tokenmill.layers.rope import Rope, logn_factors
from tokenmill.models.contract import ModelSpec, Vision
from tokenmill.models.family import AttentionBlock, DecoderArch, Family, MlpBlock, mlp_of


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, ready to run: its two halves, and the KV group whose rotation it takes."""

    attention: AttentionParts | MlaParts
    attention_block: AttentionBlock
    mlp: Any
    mlp_block: MlpBlock
    group: int


class Decoder:
    """`models.contract.Model`. Weights are read when built, a linear at a time."""

    def __init__(self, spec: ModelSpec, family: Family, arch: DecoderArch, loader: Loader):
        self.spec = spec
        self.vision: Vision | None = None
        self.ops = loader.ops
        self.dtype = loader.dtype
        self._ropes = tuple(Rope(facts, loader.device) for facts in arch.ropes)
        self._logn_tokens = arch.logn_tokens
        names, eps = family.names, arch.norm_eps
        table = (arch.vocab_size, arch.hidden_size)
        self.embedding = Embedding(loader, names.embedding, table, arch.embedding_scale)
        self.layers = tuple(_layer(family, arch, loader, index) for index in range(arch.num_layers))
        self.norm = Norm(loader.vector(f"{names.norm}.weight", arch.hidden_size), eps)
        self.head = None if family.score else family.head(loader, names.head, self.embedding, arch)
        self.score = family.score.build(loader, arch.hidden_size) if family.score else None
        # What follows each layer, which a backend may fold into the layer's end.
        self._following = (*(layer.attention.norm for layer in self.layers[1:]), self.norm)

    def rope(self, bases_T: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [T, K / 2] fp32 of each token, from its slot's rope base (0: the model's own).

        Where KV groups have rotations of their own, they lie side by side: [T, groups * K / 2].
        """
        turned = [rope(bases_T, positions_T) for rope in self._ropes]
        if len(turned) == 1:
            return turned[0]
        cos, sin = (torch.cat(tables, -1) for tables in zip(*turned, strict=True))
        return cos, sin

    def _rows_of(self, rows: RowMeta) -> tuple[RowMeta, ...]:
        """The rows as each KV group's layers see them: with their own rotation."""
        count = len(self._ropes)
        if count == 1:
            return (rows,) * len(self.spec.groups)
        pairs = zip(rows.cos_TK.chunk(count, -1), rows.sin_TK.chunk(count, -1), strict=True)
        return tuple(replace(rows, cos_TK=cos.contiguous(), sin_TK=sin.contiguous()) for cos, sin in pairs)

    def logn(self, positions_T: Tensor) -> Tensor | None:
        """LogN attention's factor on q, fp32 [T]; None for a model without it."""
        return None if self._logn_tokens is None else logn_factors(positions_T, self._logn_tokens)

    def embed(self, ids_T: Tensor) -> Tensor:
        """The token embeddings [T, D]."""
        return self.embedding(ids_T)

    @torch.inference_mode()
    def forward(
        self, ids_T: Tensor, rows: RowMeta, caches: tuple[KVPages, ...], embeds_TD: Tensor | None = None
    ) -> Tensor:
        """Hidden states [T, D] after the final norm. `embeds_TD`, where given, stands in for the token embeddings."""
        stream = Stream(self.embedding(ids_T) if embeds_TD is None else embeds_TD.to(self.dtype))
        expect(stream.residual_TD, (len(ids_T), self.spec.hidden_size), self.dtype, "the residual")
        seen = self._rows_of(rows)
        for layer, following, pages in zip(self.layers, self._following, caches, strict=True):
            stream = self._attend(layer, stream, seen[layer.group], pages)
            stream = layer.mlp_block.run(self.ops, stream, layer.mlp, following)
        return self.ops.final_norm(stream, self.norm)

    def _attend(self, layer: Layer, stream: Stream, rows: RowMeta, pages: KVPages) -> Stream:
        return layer.attention_block.run(self.ops, stream, layer.attention, layer.mlp.norm, rows, pages)

    def stages(self, ids_T: Tensor, rows: RowMeta, caches: tuple[KVPages, ...]) -> Iterator[tuple[str, Tensor]]:
        """What `forward` computes, stage by stage: a name and the residual behind it, at last the normed [T, D]."""
        stream, seen = Stream(self.embedding(ids_T)), self._rows_of(rows)
        yield "embedding", stream.residual_TD
        for index, (layer, following) in enumerate(zip(self.layers, self._following, strict=True)):
            stream = self._attend(layer, stream, seen[layer.group], caches[index])
            yield f"layer {index} attention", stream.residual_TD
            stream = layer.mlp_block.run(self.ops, stream, layer.mlp, following)
            yield f"layer {index} mlp", stream.residual_TD
        yield "final norm", self.ops.final_norm(stream, self.norm)

    @torch.inference_mode()
    def logits(self, hidden_RD: Tensor) -> Tensor:
        """fp32 [R, V] of chosen positions, gathered over ranks."""
        if self.head is None:
            raise ConfigError(f"a {self.spec.family} model gives scores, not tokens: ask /pooling or get_reward_score")
        return self.ops.head(hidden_RD, self.head)

    @torch.inference_mode()
    def pool(self, hidden_RD: Tensor) -> Tensor:
        """What rows come to, fp32 [R, n]: their hidden states, or a reward model's score (n = 1)."""
        return hidden_RD.float() if self.score is None else self.score(hidden_RD)


def _layer(family: Family, arch: DecoderArch, loader: Loader, index: int) -> Layer:
    prefix, names, block = family.names.layer.format(index), family.names, family.block(arch)
    attention, mlp = arch.attention_of(index), mlp_of(family, arch, index)
    return Layer(
        block.attention.build(loader, names.attention, prefix, attention, arch.norm_eps),
        block.attention,
        mlp.block.build(loader, mlp.names, prefix, mlp.arch, arch.norm_eps),
        mlp.block,
        attention.group,
    )
