"""A Runner on one device: stages plans on the host, carries them out in order, decides nothing.

`run` checks and packs the plan in the caller's thread and hands it to the lane. The forward and, unless masks are to
come, the sampling are queued at once; drawn ids stay on the device for the next step and come to the host in one
asynchronous copy. On CUDA nothing in a step waits for the device; a steady decode step is one graph replay.

Errors: ValueError for a plan that cannot be run (the caller's fault; the runner's state is then undefined); what a step
raises comes out of its `result`, and every later step's.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.engine.contract import I32, Capacity, Pending, StepCost, StepPlan, StepResult
from tokenmill.kv.contract import KVPages
from tokenmill.models.contract import Model
from tokenmill.runner.encode import Encoder, HostImages
from tokenmill.runner.extras import Parts, add_logprobs, gather_extras
from tokenmill.runner.graphs import DecodeGraphs
from tokenmill.runner.inputs import Geometry, Limits, SampleWork, Staged, decode_rows, mixed_rows, stage, unpack
from tokenmill.runner.lanes import Lane
from tokenmill.runner.sampler import PLAIN, RowSampling, SampleOps, finite_rows, sample
from tokenmill.runner.slots import HostSlots, SlotTables, Stage, TableSizes


@dataclass(slots=True)
class Forwarded:
    """A step whose forward is queued: of rows that draw logits fp32 [n, V], positions int32 [n], slots int64 [n]."""

    logits_NV: Tensor | None
    positions_N: Tensor
    slots_N: Tensor
    part: dict[str, Tensor]
    extras: Parts


@dataclass(slots=True)
class Drawn:
    """A step on its way to the host: int32 [n, 2] of tokens and counts. `ready` None: it is there."""

    tokens_N2: Tensor
    extras: Parts
    ready: torch.cuda.Event | None


class DeviceSteps:
    """What steps do on the device. Methods run in the lane, one after another."""

    def __init__(
        self, model: Model, capacity: Capacity, caches: tuple[KVPages, ...], device: torch.device,
        encoder: Encoder | None = None,
    ):  # fmt: skip
        self.caches, self.device, self.encoder = caches, device, encoder
        self.tables = SlotTables(table_sizes(capacity), device)
        self.graphs: DecodeGraphs | None = None
        self._capacity = capacity
        self._failed: BaseException | None = None
        self.put_model(model)

    def put_model(self, model: Model) -> None:
        """From now on steps are this model's. It must be the same model again where there was one."""
        self.model = model
        self.geometry = geometry(model, self._capacity)
        self.ops = sample_ops(model)
        self.layers = tuple(group.layers for group in model.spec.groups)
        if self.encoder is not None and model.vision is not None:
            self.encoder.vision = model.vision

    def drop_model(self) -> None:
        """Nothing here holds the model any more; no step may run until another is put."""
        if not self.has_model:
            return
        # The geometry's functions are the model's.
        del self.model, self.geometry
        if self.encoder is not None:
            del self.encoder.vision

    @property
    def has_model(self) -> bool:
        return hasattr(self, "model")

    @torch.inference_mode()
    def capture(self, keys: list[tuple[int, int]]) -> None:
        """Captures decode graphs (CUDA only)."""
        with torch.cuda.device(self.device):
            self.graphs = DecodeGraphs(self.decode, keys, self.tables.dummy, self.device)

    def forward(self, staged: Staged, buffer: Tensor) -> Forwarded:
        """Raises what an earlier step raised: after a failure the tables mean nothing."""
        if self._failed is not None:
            raise self._failed
        try:
            return self._forward(staged, buffer)
        except BaseException as error:
            self._failed = error
            raise

    def _forward(self, staged: Staged, buffer: Tensor) -> Forwarded:
        part = unpack(buffer, staged.segments)
        self.tables.apply(part)
        self._copy_blocks(staged.copies)
        if staged.encodes and self.encoder is not None:
            self.encoder.encode(staged.encodes)
        slots_R = part["slots"].long()
        if not staged.num_rows:
            return Forwarded(None, slots_R, slots_R, part, Parts())
        return self._steady(staged, slots_R, part) if staged.steady else self._mixed(staged, slots_R, part)

    def draw(self, staged: Staged, done: Forwarded, masks: tuple[Tensor, Tensor] | None) -> Drawn:
        logits = done.logits_NV
        none = torch.zeros(0, 2, dtype=torch.int32)
        tokens_N2 = none if logits is None else self._sample(staged, done, logits, masks)
        packed = tokens_N2.to("cpu", non_blocking=True)
        done.extras.to_host()
        ready = None
        if self.device.type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        return Drawn(packed, done.extras, ready)

    def decode(self, slots_R: Tensor, max_context: int) -> tuple[Tensor, Tensor]:
        """One steady step: logits [R, V] and totals [R]; lengths move on. What a graph captures."""
        padded = self.device.type == "cuda" or self.graphs is not None
        ids, rows = decode_rows(self.tables, slots_R, self.geometry, max_context, padded)
        hidden = self.model.forward(ids, rows, self.caches)
        logits = self.model.logits(hidden)
        self.tables.advance(slots_R, rows.totals_R)
        return logits, rows.totals_R

    def _steady(self, staged: Staged, slots_R: Tensor, part: dict[str, Tensor]) -> Forwarded:
        replayed = self.graphs.run(slots_R, staged.max_context) if self.graphs else None
        logits, totals = replayed or self.decode(slots_R, staged.max_context)
        return Forwarded(logits, totals, slots_R, part, Parts())

    def _mixed(self, staged: Staged, slots_R: Tensor, part: dict[str, Tensor]) -> Forwarded:
        ids, rows = mixed_rows(self.tables, part, staged, self.geometry)
        embeds = None
        if self.encoder is not None and "image_to" in part:
            embeds = self.encoder.put(self.model.embed(ids), part["image_to"], part["image_from"])
        hidden = self.model.forward(ids, rows, self.caches, embeds)
        self.tables.advance(slots_R, rows.totals_R)
        extras = Parts()
        gather_extras(extras, staged.extras, hidden, self.model)
        drawing = part["drawing"].long()
        logits = self.model.logits(hidden[part["picks"].long()]) if len(drawing) else None
        return Forwarded(logits, rows.totals_R[drawing], slots_R[drawing], part, extras)

    def _sample(
        self, staged: Staged, done: Forwarded, logits: Tensor, masks: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        work = staged.work
        finite = finite_rows(logits)
        wanting = done.part["logprob_rows"].long() if len(work.logprob_rows) else None
        raw = logits[wanting] if wanting is not None else None
        if masks is not None:
            self.ops.mask_rows(logits, *masks)
        tokens = self._choose(logits, done, work)
        self.tables.drew(done.slots_N, tokens, bool(work.stages & Stage.PENALTY))
        if raw is not None and wanting is not None:
            add_logprobs(done.extras, work, raw, tokens[wanting])
        return torch.stack([tokens.to(torch.int32), finite], 1)

    def _choose(self, logits: Tensor, done: Forwarded, work: SampleWork) -> Tensor:
        if work.stages == Stage.NONE:
            # What a sampler without stages does; no row's parameters are looked up for it.
            return logits.argmax(-1)
        rows = RowSampling.of(self.tables, done.slots_N, done.positions_N, work.stages)
        return sample(logits, rows, work.stages, work.num_candidates, self.ops)

    def _copy_blocks(self, copies: I32) -> None:
        for group, source, target in copies.tolist():
            for layer in self.layers[group]:
                for plane in self.caches[layer].planes.values():
                    plane[target] = plane[source]


class DevicePending:
    """A step under way."""

    def __init__(self, staged: Staged, sampling: Callable[[dict[int, bytes]], Future[Drawn]] | None):
        self._staged, self._sampling = staged, sampling
        self.drawn: Future[Drawn] | None = None

    @property
    def waits_for_masks(self) -> bool:
        return self.drawn is None

    def sample(self, masks: dict[int, bytes]) -> None:
        if self._sampling is None or self.drawn is not None:
            raise ValueError(f"step {self._staged.step} waits for no masks")
        self.drawn = self._sampling(masks)

    def result(self) -> StepResult:
        if self.drawn is None:
            raise ValueError(f"step {self._staged.step} still waits for its masks")
        drawn = self.drawn.result()
        if drawn.ready is not None:
            drawn.ready.synchronize()
        work, tokens = self._staged.work, drawn.tokens_N2.numpy()
        return StepResult(work.slots, work.epochs, tokens[:, :1].copy(), tokens[:, 1].copy(), drawn.extras.rows())


class Sleeper(Protocol):
    """Gives memory back and takes it again, between steps (sleep.py). Both return the parts asleep."""

    def sleep(self, level: int) -> tuple[str, ...]: ...

    def wake(self, tags: tuple[str, ...]) -> tuple[str, ...]: ...


class DeviceRunner:
    """The Runner of one process's share of a model. `bed`: how it sleeps, where it can."""

    def __init__(self, steps: DeviceSteps, capacity: Capacity, lane: Lane):
        self._steps, self._capacity, self._lane = steps, capacity, lane
        self._facts: dict[str, Any] = {}
        self.bed: Sleeper | None = None
        self._host = HostSlots(capacity.max_rows, capacity.groups)
        self._images = no_images(capacity)
        self._limits = Limits(
            capacity.max_rows, capacity.max_step_tokens, capacity.max_model_tokens, capacity.vocab_size,
            capacity.grids, capacity.ahead,
        )  # fmt: skip
        self._last: DevicePending | None = None

    def capacity(self) -> Capacity:
        return self._capacity

    def tell(self, facts: dict[str, Any]) -> None:
        """What `describe` answers from now on."""
        self._facts = facts

    def costs(self, cost: StepCost) -> None:
        """What was measured (cost.py), for the scheduler."""
        self._capacity = replace(self._capacity, cost=cost)

    def run(self, plan: StepPlan) -> Pending:
        if self._last is not None and self._last.waits_for_masks:
            raise ValueError(f"step {plan.step} planned while the step before it still waits for its masks")
        staged = stage(plan, self._host, self._limits, self._images)
        forwarded = self._lane.submit(self._steps.forward, staged, self._lane.upload(staged.buffer))
        pending = DevicePending(staged, self._masked_draw(staged, forwarded) if staged.work.masked else None)
        if not staged.work.masked:
            pending.drawn = self._lane.submit(self._draw, staged, forwarded, None)
        self._last = pending
        return pending

    def control(self, op: str, **arguments: Any) -> Any:
        """`describe`: what was decided at start (facts.py); `sleep` (level), `wake` (tags): what sleeps then."""
        if op == "describe":
            return dict(self._facts)
        if self.bed is not None and op == "sleep":
            # Whatever is encoded again finds an empty arena.
            self._images = no_images(self._capacity)
            return self.bed.sleep(**arguments)
        if self.bed is not None and op == "wake":
            return self.bed.wake(**arguments)
        raise ValueError(f"the runner knows no operation {op!r}")

    def close(self) -> None:
        self._lane.close()

    def _draw(self, staged: Staged, forwarded: Future[Forwarded], masks: tuple[Tensor, Tensor] | None) -> Drawn:
        return self._steps.draw(staged, forwarded.result(), masks)

    def _masked_draw(
        self, staged: Staged, forwarded: Future[Forwarded]
    ) -> Callable[[dict[int, bytes]], Future[Drawn]]:
        def queue(masks: dict[int, bytes]) -> Future[Drawn]:
            rows, bits = pack_masks(masks, staged.work.masked, self._limits.vocab_size)
            there = self._lane.upload(rows), self._lane.upload(bits)
            return self._lane.submit(self._draw, staged, forwarded, there)

        return queue


def pack_masks(
    masks: dict[int, bytes], masked: dict[int, int], vocab_size: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Rows of the result int64 [M] and bits uint8 [M, ceil(V / 8)]. Tokens past a mask's end are forbidden."""
    if masks.keys() != masked.keys():
        raise ValueError(f"masks came for slots {sorted(masks)}; the plan masked {sorted(masked)}")
    width = -(-vocab_size // 8)
    bits = np.zeros((len(masks), width), np.uint8)
    for i, mask in enumerate(masks.values()):
        row = np.frombuffer(mask, np.uint8)[:width]
        bits[i, : len(row)] = row
    return np.array([masked[slot] for slot in masks], np.int64), bits


def table_sizes(capacity: Capacity) -> TableSizes:
    blocks = tuple(-(-capacity.max_model_tokens // group.block_tokens) for group in capacity.groups)
    return TableSizes(capacity.max_rows, blocks, capacity.vocab_size)


def no_images(capacity: Capacity) -> HostImages:
    return HostImages(capacity.image_tiles, capacity.tile_tokens, capacity.grids)


def geometry(model: Model, capacity: Capacity) -> Geometry:
    blocks = tuple(group.block_tokens for group in capacity.groups)
    return Geometry(blocks, model.rope, model.logn, capacity.grids)


def sample_ops(model: Model) -> SampleOps:
    """What the model's backend does of sampling; its cutoffs only where they are its own."""
    ops = getattr(model, "ops", None)
    if ops is None:
        return PLAIN
    own = ops.primitives.cutoffs if ops.backends["cutoffs"] != "reference" else None
    return SampleOps(ops.primitives.penalise, ops.primitives.mask_rows, own)
