"""The quantized folder: blocks from the store, everything else from the source, and a report; whole or not there."""

from __future__ import annotations

import platform
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenmill import __version__
from tokenmill.models.spec import layer_linears, layer_plain
from tokenmill.quant.job import Job, Opened, Outcome
from tokenmill.quant.store import BlockStore
from tokenmill.weights.checkpoint import read_json
from tokenmill.weights.convert import Item, items, write_config
from tokenmill.weights.export import Export, staged

REPORT = "quantization_report.json"


def write_folder(job: Job, opened: Opened, store: BlockStore, outcome: Outcome) -> None:
    """Tensors in the order of the source, each block at the place of its first tensor."""
    with staged(job.destination) as out:
        _write_tensors(job, opened, store, out)
        head = () if opened.arch.tied else (opened.family.names.head,)
        config = read_json(job.source / "config.json")
        if job.dtype is not None:
            config["dtype" if "dtype" in config else "torch_dtype"] = str(job.dtype).removeprefix("torch.")
        write_config(out, config, replace(outcome.scheme, skip=head))
        out.copy_beside(job.source)
        out.add_json(REPORT, report(job, outcome))
        out.finish({"method": job.recipe.method})


def report(job: Job, outcome: Outcome) -> dict[str, Any]:
    """What a reader of the folder may ask: how it was made, on what, and how far from the source it is."""
    return {
        "tokenmill": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": job.device.type,
        "recipe": job.recipe.facts(),
        "calibration": {
            "origin": job.tokens.origin,
            "samples": len(job.tokens.samples),
            "window_tokens": len(next(iter((*job.tokens.samples, *job.tokens.held)), ())),
            "sha256": job.tokens.digest,
        },
        "relative_error_after_layer": outcome.errors,
        "held_out": None if outcome.quality is None else outcome.quality.facts(),
    }


def _write_tensors(job: Job, opened: Opened, store: BlockStore, out: Export) -> None:
    layer_of = _owners(opened)
    written: set[int] = set()
    for item in items(opened.source):
        index = layer_of.get(item.name)
        if index is None:
            for name, tensor in _plain(job, opened, item).items():
                out.add(name, tensor)
        elif index not in written:
            written.add(index)
            for name, tensor in store.get(index)[0].items():
                out.add(name, tensor)


def _owners(opened: Opened) -> dict[str, int]:
    """Linears (with and without .weight), biases and norms of every layer, by the name an `Item` has."""
    found: dict[str, int] = {}
    for index in range(opened.arch.num_layers):
        prefix = opened.prefix(index)
        linears = layer_linears(opened.family, opened.arch, index)
        names = [*linears, *(f"{n}.weight" for n in linears), *(f"{n}.bias" for n in linears)]
        found |= {prefix + name: index for name in (*names, *layer_plain(opened.family, opened.arch, index))}
    return found


def _plain(job: Job, opened: Opened, item: Item) -> dict[str, Tensor]:
    """What is not quantized; a quantized head of the source becomes plain."""
    if item.suffixes:
        dtype = job.dtype or torch.bfloat16
        return {f"{item.name}.weight": opened.source.weight(item.name).dequantize(dtype)}
    tensor = opened.source.tensor(item.name)
    return {item.name: tensor.to(job.dtype) if job.dtype is not None and tensor.is_floating_point() else tensor}
