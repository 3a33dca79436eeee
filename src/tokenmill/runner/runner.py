"""From a configuration to a Runner: `make_runner` reads, resolves, loads, sizes, allocates and captures, in that order.

`config.model.path` is already a local folder. What was decided is told by `control("describe")` (see `facts.py`). With
tp > 1 this process is rank 0: it starts the other ranks (`ranks.py`), and every rank builds its share by `build_share`.

Errors: FormatError (files), ConfigError (what is not served, no such device), CapacityError (names the flag that fits).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from tokenmill import config as settings
from tokenmill.config import EngineConfig, ModelFacts
from tokenmill.distributed.contract import Group
from tokenmill.distributed.group import NullGroup
from tokenmill.distributed.launch import Seat
from tokenmill.engine.contract import Capacity, KVGroup, Runner
from tokenmill.errors import CapacityError, ConfigError
from tokenmill.kernels.bind import BindFacts, bind
from tokenmill.kv.layout import kind_of
from tokenmill.log import get_logger
from tokenmill.models.build import ModelBuild, build_model
from tokenmill.models.contract import ModelSpec
from tokenmill.models.decoder import Decoder
from tokenmill.models.spec import read_spec
from tokenmill.runner import graphs, memory
from tokenmill.runner.cost import measure_cost
from tokenmill.runner.device import DeviceRunner, DeviceSteps
from tokenmill.runner.encode import Encoder
from tokenmill.runner.facts import Phases, describe
from tokenmill.runner.lanes import make_lane
from tokenmill.runner.memory import DTYPES, CacheNeed
from tokenmill.runner.place import device_facts, pick_device
from tokenmill.runner.plan import GIB, IMAGE_BATCH, IMAGE_TILES, workspace_bytes
from tokenmill.runner.ranks import lead, serve_rank
from tokenmill.runner.rehearse import rehearse
from tokenmill.runner.sleep import Bed, Remake

# Reference attention holds the scores of a whole chunk; longer steps gain nothing and cost gigabytes.
REFERENCE_STEP_TOKENS = 2048


def make_runner(config: EngineConfig) -> Runner:
    """The Runner of `config`, ready for its first plan."""
    settings.validate(config)
    ranks = config.parallel.tp
    # Refused before other processes are started.
    device, *_ = [pick_device(config, rank) for rank in range(ranks)]
    check_ranks(read_spec(config.model.path, config.model), ranks)
    if ranks == 1:
        return build_share(config, device, NullGroup())
    return lead(config, device, build_share)


def follow(seat: Seat) -> None:
    """A rank that is not 0, in its own process."""
    serve_rank(seat, pick_device(seat.config, seat.rank), build_share)


def build_share(config: EngineConfig, device: torch.device, group: Group) -> DeviceRunner:
    """One rank's Runner. Every rank of the group calls it with the same configuration."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    phases = Phases()
    spec = read_spec(config.model.path, replace(config.model, max_model_tokens=None))
    config = resolve(config, spec, device)
    if device.type == "cpu":
        get_logger().info("%d threads a step; --threads sets another number", config.kernels.threads)
    again = partial(load, config, device, group, spec)
    model = again()
    phases.end("weights")
    encoder = make_encoder(config, model)
    check_step(config, encoder)
    groups, config, need = size_cache(config, spec, device, group)
    caches = memory.allocate(need, groups, device)
    phases.end("cache")
    capacity = with_images(make_capacity(config, spec, groups), encoder)
    steps = DeviceSteps(model, capacity, caches, device, encoder)

    def capture(steps: DeviceSteps) -> None:
        # A model without logits has no decode step to capture, or to measure.
        if device.type == "cuda" and not config.kernels.eager and spec.generates:
            steps.capture(capture_keys(config, need, gathers(config, device)))

    capture(steps)
    phases.end("graphs")
    runner = DeviceRunner(steps, capacity, make_lane(device, config.kernels.threads, group.size))
    if device.type == "cuda" and spec.generates:
        rehearse(runner)
        phases.end("rehearsal")
    told = describe(config, need, groups, memory.resident_bytes(model), phases)
    told |= {"encoder_cache_bytes": capacity.encoder_cache_bytes}
    runner.tell(told)
    runner.bed = Bed(steps, Remake(again, partial(memory.allocate, need, groups, device), capture))
    if config.scheduler.itl_target_ms is not None and spec.generates:
        runner.costs(measure_cost(runner))
    return runner


def resolve(config: EngineConfig, spec: ModelSpec, device: torch.device) -> EngineConfig:
    """The configuration that will run; a chunk is kept short where attention is the reference's."""
    facts = ModelFacts(spec.max_model_tokens, spec.dtype, spec.vocab_size)
    resolved = settings.resolve(config, facts, device_facts(device, spec.linear_params // config.parallel.tp))
    if config.scheduler.max_step_tokens is None and gathers(resolved, device):
        tokens = max(REFERENCE_STEP_TOKENS, resolved.scheduler.max_rows or 1)
        resolved = replace(resolved, scheduler=replace(resolved.scheduler, max_step_tokens=tokens))
    return resolved


def gathers(config: EngineConfig, device: torch.device) -> bool:
    """True where a GPU's attention is the reference's, which holds contexts and a chunk's scores in fp32."""
    if device.type != "cuda":
        return False
    ops = bind(device, BindFacts(DTYPES[config.model.dtype], config.cache.kv))
    return ops.backends["attention"] == "reference"


def check_ranks(spec: ModelSpec, ranks: int) -> None:
    """Every rank must get whole query heads, and kv heads must divide or be divided."""
    heads, kv_heads = spec.num_heads, spec.num_kv_heads
    if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
        fits = [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
        raise ConfigError(
            f"tp is {ranks}, which cannot share out {heads} heads and {kv_heads} kv heads: use --tp with one of "
            f"{', '.join(map(str, fits))}"
        )


def load(config: EngineConfig, device: torch.device, group: Group, spec: ModelSpec) -> Decoder:
    """The model's share of this rank, on its device."""
    roomy = memory.holds_unpacked(spec, group.size, memory.free_bytes(device))
    build = ModelBuild(device, DTYPES[config.model.dtype], group, config.model, config.cache.kv, roomy=roomy)
    try:
        return build_model(config.model.path, build)
    except torch.OutOfMemoryError as error:
        total = (config.parallel.tp, device)
        raise CapacityError(
            f"the weights do not fit on {total[1]} with --tp {total[0]} "
            f"({memory.free_bytes(device) / GIB:.2f} GiB are free): use a larger --tp or a quantized checkpoint"
        ) from error


def make_encoder(config: EngineConfig, model: Decoder) -> Encoder | None:
    """The images' arena; None for a model that takes text only. Allocated before the KV cache, which gets the rest."""
    if model.vision is None:
        return None
    spec = model.vision.spec
    tiles = config.cache.image_tiles or max(IMAGE_TILES[config.kernels.device], spec.most_tiles)
    # Of one that comes in any size, a request that finds no room is refused by itself.
    if tiles < spec.most_tiles and not spec.grids:
        raise ConfigError(f"image_tiles is {tiles}; an image of this model may have {spec.most_tiles}: use more")
    return Encoder(model.vision, tiles, model.embedding.table_VD, IMAGE_BATCH)


def check_step(config: EngineConfig, encoder: Encoder | None) -> None:
    """Images whose tokens see each other run whole: one must fit into a step beside a full batch."""
    if encoder is None or not encoder.vision.spec.ahead:
        return
    tokens, least = config.scheduler.max_step_tokens or 0, (config.scheduler.max_rows or 0)
    if tokens < least + encoder.vision.spec.tile_tokens:
        raise ConfigError(
            f"max_step_tokens is {tokens}; an image of this model is {encoder.vision.spec.tile_tokens} tokens, which "
            f"run in one step beside {least} rows: use at least {least + encoder.vision.spec.tile_tokens}"
        )


def with_images(capacity: Capacity, encoder: Encoder | None) -> Capacity:
    if encoder is None:
        return capacity
    _, tile_tokens, width = encoder.arena_ETD.shape
    return replace(
        capacity,
        encoder_cache_bytes=encoder.nbytes,
        tile_tokens=tile_tokens,
        vector_bytes=width * encoder.arena_ETD.element_size(),
        grids=encoder.vision.spec.grids,
        ahead=encoder.vision.spec.ahead,
    )


def size_cache(
    config: EngineConfig, spec: ModelSpec, device: torch.device, group: Group
) -> tuple[tuple[KVGroup, ...], EngineConfig, CacheNeed]:
    """The cache that fits beside what is loaded: on the rank that has the least room, so that all hold the same."""
    need = memory.cache_need(config, spec, kind_of(spec.latent, config.cache.kv), group.size)
    work = workspace_bytes(spec, config.scheduler.max_rows or 1, config.scheduler.max_step_tokens or 1)
    if gathers(config, device):
        work += score_bytes(config, spec, group.size)
    mine = torch.tensor([max(memory.free_bytes(device) - work, 0)], device=device)
    groups, fitted = memory.size_groups(config, need, int(group.all_gather(mine).min()))
    return groups, fitted, need


def score_bytes(config: EngineConfig, spec: ModelSpec, ranks: int) -> int:
    """Reference attention's scores, their masked copy and their softmax, of a whole chunk over the longest context."""
    tokens = (config.scheduler.max_step_tokens or 1) * (config.model.max_model_tokens or spec.max_model_tokens)
    return 3 * 4 * tokens * spec.num_heads // ranks


def make_capacity(config: EngineConfig, spec: ModelSpec, groups: tuple[KVGroup, ...]) -> Capacity:
    """`cost` stays zero where no inter-token target is set: nobody reads it then, and measuring takes steps."""
    return Capacity(
        groups,
        max_rows=config.scheduler.max_rows or 1,
        max_step_tokens=config.scheduler.max_step_tokens or 1,
        max_model_tokens=config.model.max_model_tokens or spec.max_model_tokens,
        vocab_size=spec.vocab_size,
        rope=spec.rope,
        salt=f"{config.cache.kv}/{config.model.dtype}",
        generates=spec.generates,
    )


def capture_keys(config: EngineConfig, need: CacheNeed, gathered: bool) -> list[tuple[int, int]]:
    """Buckets to capture. Attention that gathers nothing is bounded by rows and context alone."""
    # K and V of a token in fp32, as reference attention gathers them.
    token_bytes = 2 * need.shape.num_heads * need.shape.head_dim * 4 if gathered else 0
    most = config.scheduler.max_rows or 1
    rows = config.kernels.capture_rows or tuple(r for r in graphs.DEFAULT_ROWS if r <= most)
    return graphs.buckets(rows, config.model.max_model_tokens or graphs.LEAST_CONTEXT, token_bytes)
