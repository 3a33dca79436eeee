"""From a checkpoint folder to a quantized one: blocks in turn, streams along with them, everything or nothing on disk.

Memory holds one block, the windows' residuals and one output shard. Errors name the layer: a block whose output is not
finite stops the run, with what to try.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import ConfigError, FormatError
from tokenmill.models.family import DecoderArch, Family
from tokenmill.models.spec import layer_linears, read_arch
from tokenmill.quant.block import Block, block_facts, read_block
from tokenmill.quant.export import write_folder
from tokenmill.quant.job import Job, Opened, Outcome, Progress, decoder_prefix
from tokenmill.quant.measure import Quality, quality
from tokenmill.quant.method import load_method
from tokenmill.quant.shapes import check_shapes
from tokenmill.quant.store import BlockStore
from tokenmill.quant.streams import Streams, begin, ending
from tokenmill.weights.convert import write_linear
from tokenmill.weights.export import check_free, disk_error
from tokenmill.weights.format import load_format
from tokenmill.weights.source import open_folder


@torch.inference_mode()
def quantize_folder(job: Job, progress: Progress | None = None) -> Outcome:
    """Runs a job. Raises ConfigError, FormatError and CapacityError; nothing is left at the destination then."""
    check_free(job.destination)
    opened = _open(job)
    outcome = Outcome(opened.scheme)
    try:
        store = BlockStore(job.destination, _identity(job), job.resume)
        streams = begin(opened.family, opened.arch, opened.decoder, job.tokens, job.device)
        for index in range(opened.arch.num_layers):
            outcome.errors.append(_pass(job, opened, streams, store, index))
            if progress:
                progress(index + 1, opened.arch.num_layers, outcome.errors[-1])
        outcome.quality = _measure(job, opened, streams)
        _refuse_above(job, outcome, store)
        write_folder(job, opened, store, outcome)
    except OSError as error:
        raise disk_error(error, job.destination) from error
    store.remove()
    return outcome


def _open(job: Job) -> Opened:
    method = load_method(job.recipe.method)
    if method.NEEDS_DATA and not job.tokens.samples:
        raise ConfigError(f"{job.recipe.method} needs calibration data: give --calib-samples of 1 or more, or use rtn")
    source = open_folder(job.source)
    family, arch = read_arch(job.source)
    facts = block_facts(family, arch, job.device, experts=not method.NEEDS_DATA)
    scheme = method.scheme(job.recipe)
    check_shapes(scheme, job.recipe, _shapes(family, arch))
    return Opened(source, family, arch, facts, method, scheme, decoder_prefix(job.source))


def _shapes(family: Family, arch: DecoderArch) -> dict[str, tuple[int, int]]:
    """(N, M) of a linear of each name and shape that any layer has, by its full name in the first that has it."""
    found: dict[tuple[str, tuple[int, int]], str] = {}
    for index in range(arch.num_layers):
        for name, shape in layer_linears(family, arch, index).items():
            found.setdefault((name, shape), family.names.layer.format(index) + name)
    return {name: shape for (_, shape), name in found.items()}


def _identity(job: Job) -> dict[str, Any]:
    """What must be equal for a run to be continued."""
    files = sorted(p for p in job.source.iterdir() if p.suffix in (".safetensors", ".bin", ".json") and p.is_file())
    seen = hashlib.sha256()
    for path in files:
        seen.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return {
        "recipe": job.recipe.facts(),
        "text": job.tokens.digest,
        "source": seen.hexdigest(),
        "device": job.device.type,
        "dtype": str(job.dtype),
    }


def _pass(job: Job, opened: Opened, streams: Streams, store: BlockStore, index: int) -> float:
    """Takes both streams through a block, quantizing it unless that was done; the streams' distance after it."""
    block = read_block(opened.facts, opened.decoder, index, job.device)
    if job.dtype is not None:
        block.stored = job.dtype
    feed = streams.feed()
    streams.pass_plain(block)
    if store.has(index):
        done, error = store.get(index)
        _restore(opened, block, index, done)
        streams.pass_quantized(block)
        return error
    made = opened.method.quantize(block, feed, job.recipe)
    vectors = _vectors(job, opened, block, index)
    _put_vectors(opened, block, index, vectors)
    streams.pass_quantized(block)
    error = streams.error()
    if not math.isfinite(error):
        raise FormatError(
            f"{opened.prefix(index)[:-1]}: its output is not finite; try --method rtn or more calibration text"
        )
    tensors: dict[str, Tensor] = {}
    for name, weight in made.items():
        written = write_linear(opened.prefix(index) + name, weight, opened.scheme)
        tensors |= {f"{opened.prefix(index)}{name}.{suffix}": tensor for suffix, tensor in written.items()}
    store.put(index, tensors | vectors, error)
    return error


def _vectors(job: Job, opened: Opened, block: Block, index: int) -> dict[str, Tensor]:
    """Norms and biases as the method left them, in the dtype they lie in on disk."""
    made = {}
    for name, value in block.vectors.items():
        full = opened.prefix(index) + name
        made[full] = value.cpu().to(job.dtype or opened.source.checkpoint.info(full).dtype)
    return made


def _restore(opened: Opened, block: Block, index: int, tensors: dict[str, Tensor]) -> None:
    """Puts a finished block's numbers back, exactly as they were when it was stored."""
    prefix, form = opened.prefix(index), load_format(opened.scheme.format)
    for name in block.linears:
        start = f"{prefix}{name}."
        held = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        device = block.linears[name].device
        block.linears[name] = form.read(held, opened.scheme).to(device).dequantize(torch.float32)
    _put_vectors(opened, block, index, tensors)


def _put_vectors(opened: Opened, block: Block, index: int, tensors: dict[str, Tensor]) -> None:
    """Norms and biases as the files hold them: what is measured is what is served, and a resumed run sees the same."""
    for name, value in block.vectors.items():
        block.vectors[name] = tensors[opened.prefix(index) + name].to(value.device, torch.float32)


def _measure(job: Job, opened: Opened, streams: Streams) -> Quality | None:
    held = slice(streams.samples, None)
    ids = [torch.tensor(window, device=job.device) for window in job.tokens.held]
    end = ending(opened.family, opened.arch, opened.decoder, job.device)
    return quality(end, streams.plain[held], streams.quantized[held], ids)


def _refuse_above(job: Job, outcome: Outcome, store: BlockStore) -> None:
    if job.max_kl is None:
        return
    if outcome.quality is None:
        raise ConfigError("--max-kl needs held-out text, and the calibration text is too short for any")
    if not outcome.quality.kl <= job.max_kl:
        store.remove()
        raise ConfigError(
            f"KL {outcome.quality.kl:.4g} is above --max-kl {job.max_kl:g}: nothing was written; try a smaller "
            "--w-group-size, more bits, or calibration text nearer to your use"
        )
