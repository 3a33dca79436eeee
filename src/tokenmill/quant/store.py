"""Finished blocks of a run that may be interrupted: `NAME.resume`, beside the destination.

Each block is one file that appears by rename when it is whole, so a kill loses the block under way and no more. The
folder has no config.json and loads nowhere. What the run was made of is kept beside the blocks: other choices, another
source or another text never continue it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenmill.errors import ConfigError
from tokenmill.weights.checkpoint import Checkpoint, read_json
from tokenmill.weights.safetensors_writer import write_safetensors

JOB = "job.json"


class BlockStore:
    """Tensors by block index. `facts` must be the same for a run to be continued."""

    def __init__(self, destination: Path, facts: dict[str, Any], resume: bool):
        self.folder = destination.with_name(destination.name + ".resume")
        facts = json.loads(json.dumps(facts))
        if self.folder.exists() and not resume:
            shutil.rmtree(self.folder)
        if (self.folder / JOB).exists():
            self._check(facts)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / (JOB + ".new")).write_text(json.dumps(facts, indent=2), "utf-8")
        (self.folder / (JOB + ".new")).rename(self.folder / JOB)

    def _check(self, facts: dict[str, Any]) -> None:
        begun = read_json(self.folder / JOB)
        differ = sorted(key for key in begun.keys() | facts.keys() if begun.get(key) != facts.get(key))
        if differ:
            raise ConfigError(
                f"{self.folder.name} was begun with another {', '.join(differ)}: run without --resume to begin again"
            )

    def has(self, index: int) -> bool:
        return self._path(index).is_file()

    def put(self, index: int, tensors: dict[str, Tensor], error: float) -> None:
        """`error` is kept with the block, for the report."""
        fresh = self.folder / f"new-{index:05d}"
        fresh.unlink(missing_ok=True)
        write_safetensors(fresh, tensors)
        (self.folder / f"error-{index:05d}.json").write_text(json.dumps({"error": error}), "utf-8")
        fresh.rename(self._path(index))

    def get(self, index: int) -> tuple[dict[str, Tensor], float]:
        checkpoint = Checkpoint(self._path(index).parent)
        tensors = {name: checkpoint.tensor(name) for name in checkpoint.names()}
        return tensors, float(read_json(self.folder / f"error-{index:05d}.json")["error"])

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        """A folder of its own, as `Checkpoint` reads folders."""
        place = self.folder / f"block-{index:05d}"
        place.mkdir(exist_ok=True)
        return place / "model.safetensors"
