"""The quantized folder: blocks from the store, everything else from the source, and a report; whole or not there."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokenmill.models.spec import layer_linears, layer_plain
from tokenmill.quant import report
from tokenmill.quant.job import Job, Opened, Outcome
from tokenmill.quant.store import BlockStore
from tokenmill.weights.checkpoint import read_json
from tokenmill.weights.convert import Item, items, write_config
from tokenmill.weights.export import Export, staged


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
        _write_report(job, outcome, out)
        out.finish({"method": job.recipe.method})


def _write_report(job: Job, outcome: Outcome, out: Export) -> None:
    told = report.facts(job, outcome)
    out.add_json(report.REPORT, told)
    out.add_bytes(report.PAGE, report.page(told, out.tensor_bytes).encode())
    out.add_bytes(report.PLOT, report.plot(outcome.errors).encode())


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
