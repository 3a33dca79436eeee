"""A decoder assembled from a family's declaration: the one Model of all Llama-shaped families.

T packed tokens of all rows, D hidden, V vocabulary, R chosen positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.kernels.expect import expect
from tokenmill.kernels.meta import RowMeta, Stream
from tokenmill.kernels.ops import AttentionParts, MlpParts, Norm
from tokenmill.kv.contract import KVPages
from tokenmill.layers.embedding import Embedding
from tokenmill.layers.linear import Loader
from tokenmill.layers.rope import Rope, logn_factors
from tokenmill.models.contract import ModelSpec, Vision
from tokenmill.models.family import DecoderArch, Family


@dataclass(frozen=True, slots=True)
class Layer:
    attention: AttentionParts
    mlp: MlpParts


class Decoder:
    """`models.contract.Model`. Weights are read when built, a linear at a time."""

    def __init__(self, spec: ModelSpec, family: Family, arch: DecoderArch, loader: Loader):
        self.spec = spec
        self.vision: Vision | None = None
        self.ops = loader.ops
        self.dtype = loader.dtype
        self._rope = Rope(arch.rope, loader.device)
        self._logn_tokens = arch.logn_tokens
        names, eps = family.names, arch.norm_eps
        self.embedding = Embedding(loader, names.embedding, arch.vocab_size, arch.hidden_size)
        self.layers = tuple(_layer(family, arch, loader, index) for index in range(arch.num_layers))
        self.norm = Norm(loader.vector(f"{names.norm}.weight", arch.hidden_size), eps)
        self.head = family.head(loader, names.head, self.embedding, arch.tied)
        # What follows each layer, which a backend may fold into the layer's end.
        self._following = (*(layer.attention.norm for layer in self.layers[1:]), self.norm)

    def rope(self, bases_T: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [T, K / 2] fp32 of each token, from its slot's rope base (0: the model's own)."""
        return self._rope(bases_T, positions_T)

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
        for layer, following, pages in zip(self.layers, self._following, caches, strict=True):
            stream = self._run(layer, stream, following, rows, pages)
        return self.ops.final_norm(stream, self.norm)

    def _run(self, layer: Layer, stream: Stream, following: Norm, rows: RowMeta, pages: KVPages) -> Stream:
        ops = self.ops
        q_THK = ops.attn_in(stream, layer.attention, rows, pages)
        y_TM = ops.attend(q_THK, layer.attention, rows, pages)
        stream = ops.attn_out(stream, y_TM, layer.attention, layer.mlp.norm)
        return ops.mlp_out(stream, ops.mlp_in(stream, layer.mlp), layer.mlp, following)

    def stages(self, ids_T: Tensor, rows: RowMeta, caches: tuple[KVPages, ...]) -> Iterator[tuple[str, Tensor]]:
        """What `forward` computes, stage by stage: a name and the residual behind it, at last the normed [T, D]."""
        stream = Stream(self.embedding(ids_T))
        yield "embedding", stream.residual_TD
        for index, (layer, following) in enumerate(zip(self.layers, self._following, strict=True)):
            q_THK = self.ops.attn_in(stream, layer.attention, rows, caches[index])
            y_TM = self.ops.attend(q_THK, layer.attention, rows, caches[index])
            stream = self.ops.attn_out(stream, y_TM, layer.attention, layer.mlp.norm)
            yield f"layer {index} attention", stream.residual_TD
            stream = self.ops.mlp_out(stream, self.ops.mlp_in(stream, layer.mlp), layer.mlp, following)
            yield f"layer {index} mlp", stream.residual_TD
        yield "final norm", self.ops.final_norm(stream, self.norm)

    @torch.inference_mode()
    def logits(self, hidden_RD: Tensor) -> Tensor:
        """fp32 [R, V] of chosen positions, gathered over ranks."""
        return self.ops.head(hidden_RD, self.head)


def _layer(family: Family, arch: DecoderArch, loader: Loader, index: int) -> Layer:
    prefix, names, block = family.names.layer.format(index), family.names, family.block(arch)
    return Layer(
        block.attention.build(loader, names.attention, prefix, arch.attention_of(index), arch.norm_eps),
        block.mlp.build(loader, names.mlp, prefix, arch.mlp, arch.norm_eps),
    )
