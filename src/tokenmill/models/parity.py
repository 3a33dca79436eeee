"""Compares a model with transformers, stage by stage, in fp32 on the CPU, and names the first stage that differs.

The same random prompt goes through both. Stages are the embedding, the residual behind each layer's attention and MLP,
the final norm and the logits; then the logits once more, computed in chunks over the paged cache. A stage agrees where
its largest difference is at most `LIMIT` of the reference's size (root mean square, at least 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenmill.config import ModelConfig
from tokenmill.engine.images import turns_of
from tokenmill.models.build import ModelBuild, build_model
from tokenmill.models.decoder import Decoder
from tokenmill.models.solo import Solo
from tokenmill.models.twin import ScoreTwin, load_twin, load_whole_twin
from tokenmill.types import MediaRef

LIMIT = 1e-4
# Any id will do to mark where the image lies, so no tokenizer is asked.
IMAGE_ID = 3
# Rows and columns of two images, for models that take any: windows are cut at their edges.
GRIDS: tuple[tuple[int, ...], ...] = ((6, 3), (5, 9))


@dataclass(frozen=True, slots=True)
class Probe:
    """What is compared: a prompt of `tokens` random ids, and once more in chunks of `chunk` tokens.

    `backends`: kernel backends in order; None is what the device uses, () the reference alone.
    """

    tokens: int = 64
    seed: int = 0
    chunk: int = 7
    config: ModelConfig = ModelConfig()
    backends: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class StageParity:
    """One stage: its largest difference, and the reference's root mean square."""

    name: str
    difference: float
    size: float

    @property
    def ok(self) -> bool:
        """False for NaN, too (with the size first, `max` gives NaN on)."""
        return self.difference <= LIMIT * max(self.size, 1.0)

    def __str__(self) -> str:
        mark = "ok" if self.ok else "DIFFERS"
        return f"{self.name:<24} {self.difference:10.3e} {self.size:10.3e}  {mark}"


@dataclass(frozen=True, slots=True)
class ParityReport:
    """All stages in order. `ok`: every one agrees."""

    model: str
    tokens: int
    stages: tuple[StageParity, ...]

    @property
    def first_difference(self) -> str | None:
        return next((stage.name for stage in self.stages if not stage.ok), None)

    @property
    def ok(self) -> bool:
        return self.first_difference is None

    def __str__(self) -> str:
        head = f"{self.model}, {self.tokens} random tokens, fp32 on the CPU, against transformers"
        columns = f"{'stage':<24} {'difference':>10} {'size':>10}"
        verdict = "every stage agrees" if self.ok else f"the first stage that differs: {self.first_difference}"
        return "\n".join([head, columns, *map(str, self.stages), f"{verdict} (limit {LIMIT:g} of a stage's size)"])


def check_parity(folder: str | Path, probe: Probe = Probe()) -> ParityReport:
    """Runs both models on one prompt. Raises ConfigError and FormatError as loading does."""
    model = build_model(folder, ModelBuild(config=probe.config, backends=probe.backends))
    tokens = min(probe.tokens, model.spec.max_model_tokens)
    draw = torch.Generator().manual_seed(probe.seed)
    ids_T = torch.randint(0, model.spec.vocab_size, (tokens,), generator=draw)
    # Theirs second and consumed at once: both models are resident, their activations only as far as compared.
    theirs = twin_stages(load_twin(folder, probe.config), ids_T)
    ours = list(own_stages(model, ids_T, probe.chunk))
    stages = [_compare(name, x, theirs[name]) for name, x in ours]
    if model.vision is not None:
        stages += image_stages(model, load_whole_twin(folder, IMAGE_ID, probe.config), ids_T)
    return ParityReport(Path(folder).name, tokens, tuple(stages))


@torch.inference_mode()
def image_stages(model: Decoder, twin: Any, ids_T: Tensor) -> Iterator[StageParity]:
    """Two random images: what the tower makes of them, and the logits of a prompt with text before and between them."""
    assert model.vision is not None
    spec = model.vision.spec
    grids = GRIDS if spec.grids else ((), ())
    sizes = [prod(grid) if grid else spec.tile_tokens for grid in grids]
    draw = torch.Generator().manual_seed(1)
    pieces = torch.randint(0, 256, spec.shape(sum(sizes)), generator=draw, dtype=torch.uint8)
    features_TD = model.vision(pieces, grids)
    yield _compare("image features", features_TD, twin.features(pieces, grids))
    ids_T, media = _around(ids_T.tolist(), sizes, grids)
    turns = turns_of(media, 0, len(ids_T))
    embeds_TD = model.embed(ids_T).clone()
    embeds_TD[ids_T == IMAGE_ID] = features_TD
    solo = Solo(model, len(ids_T))
    rows = solo.rows(len(ids_T), None if turns is None else torch.from_numpy(turns))
    if spec.ahead:
        rows.ends_T = _ends(rows.positions_T, media)
    hidden_TD = model.forward(ids_T, rows, solo.caches, embeds_TD)
    yield _compare("logits with an image", model.logits(hidden_TD), twin.logits(ids_T, pieces, grids))


def _ends(positions_T: Tensor, media: tuple[MediaRef, ...]) -> Tensor:
    """The last place that each token sees where an image's tokens see each other."""
    ends_T = positions_T.clone()
    for image in media:
        ends_T[image.offset : image.offset + image.num_tokens] = image.offset + image.num_tokens - 1
    return ends_T


def _around(text: list[int], sizes: list[int], grids: Sequence[tuple[int, ...]]) -> tuple[Tensor, tuple[MediaRef, ...]]:
    """A prompt with an image behind each third of the text, and where they lie."""
    text = [IMAGE_ID + 1 if token == IMAGE_ID else token for token in text]
    ids: list[int] = []
    media = []
    third = len(text) // 3
    for index, (size, grid) in enumerate(zip(sizes, grids, strict=True)):
        ids += text[index * third : (index + 1) * third]
        media.append(MediaRef("", len(ids), size, grid=grid))
        ids += [IMAGE_ID] * size
    return torch.tensor(ids + text[len(sizes) * third :]), tuple(media)


@torch.inference_mode()
def own_stages(model: Decoder, ids_T: Tensor, chunk: int) -> Iterator[tuple[str, Tensor]]:
    solo = Solo(model, len(ids_T))
    hidden_TD = torch.empty(0)
    for name, hidden_TD in model.stages(ids_T, solo.rows(len(ids_T)), solo.caches):
        yield name, hidden_TD
    in_chunks = Solo(model, len(ids_T)).hidden(ids_T, chunk)
    if model.score is not None:
        yield "score", model.pool(hidden_TD[-1:])
        yield "score in chunks", model.pool(in_chunks[-1:])
        return
    yield "logits", model.logits(hidden_TD)
    yield "logits in chunks", model.logits(in_chunks)


@torch.inference_mode()
def twin_stages(twin: Any, ids_T: Tensor) -> dict[str, Tensor]:
    """The same stages of a transformers decoder, caught on their way through its modules."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: Any) -> None:
        seen[name] = (value[0] if isinstance(value, tuple) else value)[0].float()

    def watch_input(module: Any, name: str) -> None:
        module.register_forward_pre_hook(lambda _, arguments: keep(name, arguments[0]))

    def watch_output(module: Any, name: str) -> None:
        module.register_forward_hook(lambda _, __, value: keep(name, value))

    watch_output(twin.get_input_embeddings(), "embedding")
    for index, layer in enumerate(twin.model.layers):
        # Families that norm what attention adds keep the MLP's own norm under another name.
        before_mlp = getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)
        watch_input(before_mlp, f"layer {index} attention")
        watch_output(layer, f"layer {index} mlp")
    watch_output(twin.model.norm, "final norm")
    last = twin(ids_T[None]).logits[0].float()
    what = "score" if isinstance(twin, ScoreTwin) else "logits"
    return {**seen, what: last, f"{what} in chunks": last}


def _compare(name: str, ours: Tensor, theirs: Tensor) -> StageParity:
    size = float(theirs.square().mean().sqrt())
    return StageParity(name, float((ours.float() - theirs).abs().max()), size)
