"""Where a device's memory goes: three arenas (weights, KV, workspace), sized from the configuration and what is free.

Weights are what was loaded, workspace is estimated in `plan.py`, the KV cache takes its share of the rest (or the bytes
or blocks that the configuration names). On CPU the cache is also bounded by what all rows at full length could use,
since the memory is the user's, too.

Errors: CapacityError where one sequence of the length asked for does not fit; it names the flag and the value that
would.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tokenmill.config import EngineConfig
from tokenmill.engine.contract import KVGroup
from tokenmill.errors import CapacityError
from tokenmill.kv.contract import KVKind, KVPages, KVShape
from tokenmill.log import get_logger
from tokenmill.models.contract import ModelSpec
from tokenmill.runner.plan import GIB, kv_tokens, require_tokens, workspace_bytes

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Arenas:
    """Bytes of each arena, and the tokens the cache holds."""

    weights: int
    kv: int
    workspace: int
    tokens: int


@dataclass(frozen=True, slots=True)
class CacheNeed:
    """What the cache of one rank is made of."""

    spec: ModelSpec
    kind: KVKind
    shape: KVShape
    dtype: torch.dtype

    def block_bytes(self, layers: int) -> int:
        shape = self.shape
        per_token = self.kind.bytes_per_token(shape.num_heads, shape.head_dim, self.dtype.itemsize)
        return layers * shape.block_tokens * per_token


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device; on CPU within the control group's limit."""
    if device.type == "cuda":
        # What loading left in the allocator's own store is free as well.
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    free = _available()
    limit = _CGROUP / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - _held_by_group())
    return max(free, 0)


def _held_by_group() -> int:
    """Without cached files, which are given back when memory is wanted; who has just installed packages has GiBs."""
    facts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    cached = int(facts.get("active_file", 0)) + int(facts.get("inactive_file", 0))
    return int((_CGROUP / "memory.current").read_text()) - cached


def _available() -> int:
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cache_need(config: EngineConfig, spec: ModelSpec, kind: KVKind, ranks: int) -> CacheNeed:
    """KV heads are shared out over ranks; where there are fewer heads than ranks, each rank keeps one."""
    shape = KVShape(max(1, spec.num_kv_heads // ranks), spec.head_dim, config.cache.block_tokens or 16)
    return CacheNeed(spec, kind, shape, DTYPES[config.model.dtype])


def size_groups(config: EngineConfig, need: CacheNeed, free: int) -> tuple[tuple[KVGroup, ...], EngineConfig]:
    """KV groups with their blocks, and the configuration with the context that fits in them."""
    blocks = _num_blocks(config, need, free)
    size = need.shape.block_tokens
    fitted = _fit_context(config, need, blocks * size, free)
    groups = tuple(
        KVGroup(g.name, len(g.layers), size, need.block_bytes(len(g.layers)), blocks, g.window_tokens)
        for g in need.spec.groups
    )
    return groups, fitted


def _num_blocks(config: EngineConfig, need: CacheNeed, free: int) -> int:
    cache = config.cache
    if cache.num_blocks is not None:
        return cache.num_blocks
    all_layers = sum(need.block_bytes(len(g.layers)) for g in need.spec.groups)
    if cache.memory_bytes is not None:
        return cache.memory_bytes // all_layers
    blocks = kv_tokens(free, cache.memory_frac, all_layers)
    if config.kernels.device == "cpu":
        size = need.shape.block_tokens
        blocks = min(blocks, (config.scheduler.max_rows or 1) * -(-(config.model.max_model_tokens or size) // size))
    return blocks


def _fit_context(config: EngineConfig, need: CacheNeed, tokens: int, free: int) -> EngineConfig:
    """A context the user asked for must fit; the model's own is shortened to what fits, with a warning."""
    wanted = config.model.max_model_tokens or need.spec.max_model_tokens
    if tokens >= wanted:
        return config
    per_token = need.block_bytes(need.spec.num_layers) // need.shape.block_tokens
    explicit = config.model.max_model_tokens is not None and wanted != need.spec.max_model_tokens
    cache = config.cache
    if cache.num_blocks is not None or cache.memory_bytes is not None:
        if explicit or tokens < need.shape.block_tokens:
            raise CapacityError(
                f"the KV cache as configured holds {tokens} tokens but one sequence may have {wanted}: "
                f"give it {-(-wanted // need.shape.block_tokens)} blocks or {wanted * per_token / GIB:.2f} GiB, "
                f"or use --session-len {tokens}"
            )
    elif explicit or tokens < need.shape.block_tokens:
        require_tokens(tokens, wanted, per_token, free, cache.memory_frac)
    get_logger().warning(
        "the model takes %d tokens but the KV cache holds %d: the context is shortened to that; a larger "
        "--cache-max-entry-count or a smaller KV kind (--quant-policy 8) would hold more", wanted, tokens,
    )
    return replace(config, model=replace(config.model, max_model_tokens=tokens))


def allocate(need: CacheNeed, groups: tuple[KVGroup, ...], device: torch.device) -> tuple[KVPages, ...]:
    """Pages by layer. Raises CapacityError where the device refuses."""
    pages: dict[int, KVPages] = {}
    try:
        for group, facts in zip(groups, need.spec.groups, strict=True):
            for layer in facts.layers:
                pages[layer] = need.kind.alloc(group.num_blocks, need.shape, need.dtype, device)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        total = sum(g.num_blocks * g.bytes_per_block for g in groups)
        raise CapacityError(
            f"the device refused {total / GIB:.2f} GiB for the KV cache: use a smaller --cache-max-entry-count"
        ) from error
    return tuple(pages[layer] for layer in sorted(pages))


def arenas(weights: int, groups: tuple[KVGroup, ...], spec: ModelSpec, config: EngineConfig) -> Arenas:
    work = workspace_bytes(spec, config.scheduler.max_rows or 1, config.scheduler.max_step_tokens or 1)
    kv = sum(g.num_blocks * g.bytes_per_block for g in groups)
    return Arenas(weights, kv, work, groups[0].num_blocks * groups[0].block_tokens)


def resident_bytes(model: object) -> int:
    """What the weights really take."""
    return sum(storage.nbytes() for storage in storages(model))


def storages(model: object) -> list[torch.UntypedStorage]:
    """The storage of every tensor that a model holds, each once."""
    found: dict[int, torch.UntypedStorage] = {}
    seen: set[int] = set()
    stack: list[Any] = [model]
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, (str, bytes, int, float, type)):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            found[storage.data_ptr()] = storage
        else:
            stack.extend(_members(item))
    return list(found.values())


def _members(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, (tuple, list)):
        return list(item)
    slots = [name for kind in type(item).__mro__ for name in getattr(kind, "__slots__", ())]
    return [*vars(item).values()] if hasattr(item, "__dict__") else [getattr(item, n, None) for n in slots]
