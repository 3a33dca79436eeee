"""Writing a checkpoint folder that is either whole or not there.

Everything goes to `NAME.partial` beside the destination; each file is flushed to the device, a manifest with every
file's size and SHA-256 is written last, and one rename makes the folder appear. A failure removes the partial folder;
what a killed process leaves has a name that `Checkpoint` refuses, and the next run removes it. Two writers of one
destination cannot meet: the partial folder is locked while it is written.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenmill.errors import CapacityError, ConfigError, FormatError, TokenmillError
from tokenmill.log import safe
from tokenmill.weights.checkpoint import SAFETENSORS_INDEX, SAFETENSORS_SINGLE, Checkpoint, read_json
from tokenmill.weights.safetensors_writer import Written, write_safetensors

MANIFEST = "manifest.json"
LOCK = ".lock"
SHARD_BYTES = 2_000_000_000
# What belongs to a checkpoint beside its weights: tokenizer, generation settings, templates, remote code, licences.
COPIED = (".json", ".txt", ".model", ".py", ".jinja", ".md", ".tiktoken", ".vocab")
COPIED_STEMS = ("LICENSE", "NOTICE")
NOT_COPIED = ("config.json", "quantize_config.json", MANIFEST, "quantization_report.json", "REPORT.md")


class Export:
    """A folder being written. Tensors are held until a shard is full: one shard is resident at most."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES):
        self.folder = folder
        self._limit = shard_bytes
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._shards: list[dict[str, int]] = []
        self._files: dict[str, Written] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """One tensor of the checkpoint. FormatError where the name is taken."""
        if name in self._held or any(name in shard for shard in self._shards):
            raise FormatError(f"{safe(name, 200)} would be written twice")
        if self._held and self._held_bytes + tensor.nbytes > self._limit:
            self._write_shard()
        # A view would keep alive all it was cut from.
        self._held[name] = tensor.detach().cpu().clone()
        self._held_bytes += tensor.nbytes

    @property
    def tensor_bytes(self) -> int:
        """Of all tensors so far."""
        return self._held_bytes + sum(sum(shard.values()) for shard in self._shards)

    def add_json(self, file: str, value: dict[str, Any]) -> None:
        self.add_bytes(file, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def add_bytes(self, file: str, data: bytes) -> None:
        """A small file of the folder."""
        with (self.folder / file).open("xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        self._files[file] = Written(len(data), hashlib.sha256(data).hexdigest())

    def copy_beside(self, source: Path) -> None:
        """The files that belong to a checkpoint beside its weights and config.json, from the folder it came from."""
        for path in sorted(source.iterdir()):
            wanted = path.suffix in COPIED or path.name.startswith(COPIED_STEMS)
            if wanted and path.is_file() and path.name not in NOT_COPIED and not path.name.endswith(".index.json"):
                self.add_bytes(path.name, path.read_bytes())

    def finish(self, facts: dict[str, Any]) -> None:
        """Last shard, index, manifest. `facts` goes into the manifest."""
        if self._held:
            self._write_shard()
        self._name_shards()
        files = {name: {"bytes": w.nbytes, "sha256": w.sha256} for name, w in sorted(self._files.items())}
        self.add_json(MANIFEST, {"tokenmill_manifest": 1, **facts, "files": files})

    def _write_shard(self) -> None:
        file = f"shard-{len(self._shards) + 1:05d}"
        self._files[file] = write_safetensors(self.folder / file, self._held)
        self._shards.append({name: tensor.nbytes for name, tensor in self._held.items()})
        self._held, self._held_bytes = {}, 0

    def _name_shards(self) -> None:
        """Final names, which hold the number of shards, and the index where there is more than one."""
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for i, shard in enumerate(self._shards, 1):
            final = SAFETENSORS_SINGLE if count == 1 else f"model-{i:05d}-of-{count:05d}.safetensors"
            (self.folder / f"shard-{i:05d}").rename(self.folder / final)
            self._files[final] = self._files.pop(f"shard-{i:05d}")
            weight_map |= dict.fromkeys(shard, final)
        if count > 1:
            total = sum(sum(shard.values()) for shard in self._shards)
            self.add_json(SAFETENSORS_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


@contextmanager
def staged(destination: Path, shard_bytes: int = SHARD_BYTES) -> Iterator[Export]:
    """An `Export` that becomes `destination` when the block ends, and nothing at all when it fails."""
    check_free(destination)
    partial = destination.with_name(destination.name + ".partial")
    try:
        lock = _begin(partial)
    except OSError as error:
        raise disk_error(error, destination) from error
    try:
        yield Export(partial, shard_bytes)
        _sync_folder(partial)
        partial.rename(destination)
        # Only now: a second writer that found no lock in the partial folder would empty it.
        (destination / LOCK).unlink()
        _sync_folder(destination.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise disk_error(error, destination) from error
        raise
    finally:
        os.close(lock)


def check_free(destination: Path) -> None:
    """ConfigError where something is already there, or the folder above is not."""
    if destination.exists() or destination.is_symlink():
        raise ConfigError(f"{destination} already exists: name another folder, or remove it first")
    if not destination.name or destination.name.endswith(".partial"):
        raise ConfigError(f"{destination} cannot be written: name a folder that does not end in .partial")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, destination) from error


def disk_error(error: OSError, destination: Path) -> TokenmillError:
    """What to tell a user whose disk or folder does not take what is written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(destination.parent).free
        return CapacityError(f"no room to write {destination.name}: {free} bytes are free there; free some")
    return ConfigError(f"{destination} cannot be written: {safe(str(error), 200)}")


def _begin(partial: Path) -> int:
    """A fresh, locked partial folder. What a killed run left is removed."""
    if partial.is_symlink():
        raise ConfigError(f"{partial.name} is a link, whose folder would be emptied: remove it first")
    partial.mkdir(exist_ok=True)
    lock = os.open(partial / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ConfigError(f"{partial.name} is being written by another process: wait for it") from error
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
    return lock


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def verify(folder: str | Path) -> None:
    """FormatError unless the folder's headers and index agree and every file is as its manifest says."""
    path = Path(folder)
    Checkpoint(path)
    listed = read_json(path / MANIFEST).get("files")
    if not isinstance(listed, dict):
        raise FormatError(f"{path.name}/{MANIFEST} lists no files")
    for name, facts in listed.items():
        _verify_file(path, str(name), facts if isinstance(facts, dict) else {})
    extra = sorted(p.name for p in path.iterdir() if p.suffix == ".safetensors" and p.name not in listed)
    if extra:
        raise FormatError(f"{path.name} holds {', '.join(extra)}, which its manifest does not list")


def _verify_file(folder: Path, name: str, facts: dict[str, Any]) -> None:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise FormatError(f"{folder.name}: {safe(name, 200)} is in the manifest and not in the folder")
    size = path.stat().st_size
    if size != facts.get("bytes"):
        raise FormatError(f"{name} has {size} bytes; the manifest says {safe(facts.get('bytes'), 40)}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != facts.get("sha256"):
        told = safe(facts.get("sha256"), 80)
        raise FormatError(f"{name} has changed: its SHA-256 is {found}, the manifest says {told}")
