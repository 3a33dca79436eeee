"""A runner that gives its memory back and takes it again: `control("sleep")` and `control("wake")`.

Two parts sleep and wake apart: `kv_cache` (pages and pictures' vectors, whose content is lost) and `weights`. Level 1
moves weights into the host's memory, where they are on a CPU already; level 2 drops them, and waking reads the
checkpoint again. Captured graphs hold addresses: they go first, and are captured anew once both parts are awake.

Called between steps, with none under way. A part that cannot wake (CapacityError, FormatError) goes on sleeping.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.engine.contract import KV_CACHE, PARTS, WEIGHTS
from tokenmill.errors import CapacityError
from tokenmill.kv.contract import KVPages
from tokenmill.models.contract import Model
from tokenmill.runner.device import DeviceSteps
from tokenmill.runner.memory import storages


@dataclass(frozen=True, slots=True)
class Remake:
    """How to make again what sleep took: as `build_share` made it, of the same sizes."""

    load: Callable[[], Model]
    allocate: Callable[[], tuple[KVPages, ...]]
    capture: Callable[[DeviceSteps], None]


class Bed:
    """Which parts of `steps` are asleep, and what they need to wake."""

    def __init__(self, steps: DeviceSteps, remake: Remake):
        self._steps, self._remake = steps, remake
        self._asleep: set[str] = set()
        # Weights that wait in the host's memory: their storage on the device, and the bytes.
        self._kept: list[tuple[torch.UntypedStorage, Tensor]] = []

    @property
    def asleep(self) -> tuple[str, ...]:
        return tuple(part for part in PARTS if part in self._asleep)

    def sleep(self, level: int) -> tuple[str, ...]:
        """Everything sleeps; what slept at level 1 may be told level 2. The parts asleep."""
        self._settle()
        self._steps.graphs = None
        self._steps.caches = ()
        if self._steps.encoder is not None:
            self._steps.encoder.clear()
        if level == 2:
            self._kept = []
            self._steps.drop_model()
        elif WEIGHTS not in self._asleep:
            self._move_out()
        self._asleep |= {WEIGHTS, KV_CACHE}
        self._collect()
        return self.asleep

    def wake(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """The parts named in `tags` wake, all where none is named. The parts still asleep."""
        for part, wake in ((WEIGHTS, self._wake_weights), (KV_CACHE, self._wake_cache)):
            if part not in self._asleep or (tags and part not in tags):
                continue
            try:
                wake()
            except torch.OutOfMemoryError as error:
                self._collect()
                raise CapacityError(
                    f"the {part} cannot wake, as its memory is taken: free some on {self._steps.device}, wake again"
                ) from error
            self._asleep.discard(part)
            if not self._asleep:
                self._remake.capture(self._steps)
        return self.asleep

    def _move_out(self) -> None:
        """Bytes leave one storage at a time; tensors keep their storages, which wake elsewhere."""
        for storage in filter(leaves, storages(self._steps.model)):
            self._kept.append((storage, _bytes_of(storage).to("cpu", copy=True)))
            storage.resize_(0)

    def _wake_weights(self) -> None:
        if not self._steps.has_model:
            self._steps.put_model(self._remake.load())
        while self._kept:
            storage, kept = self._kept[-1]
            storage.resize_(len(kept))
            _bytes_of(storage).copy_(kept)
            self._kept.pop()

    def _wake_cache(self) -> None:
        if self._steps.encoder is not None:
            self._steps.encoder.refill()
        self._steps.caches = self._remake.allocate()

    def _settle(self) -> None:
        if self._steps.device.type == "cuda":
            torch.cuda.synchronize(self._steps.device)

    def _collect(self) -> None:
        """A process that froze what it had at the start keeps it from the collector; dropped models are among it."""
        frozen = gc.get_freeze_count()
        gc.unfreeze()
        gc.collect()
        if frozen:
            gc.freeze()
        if self._steps.device.type == "cuda":
            torch.cuda.empty_cache()


def leaves(storage: torch.UntypedStorage) -> bool:
    """Whether a storage's bytes go to the host at level 1."""
    return storage.device.type == "cuda"


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
