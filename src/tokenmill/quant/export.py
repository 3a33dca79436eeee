"""The quantized folder: blocks from the store, everything else from the source, and a report; whole or not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenmill.models.spec import find_multimodal, layer_linears, layer_plain
from tokenmill.quant import report
from tokenmill.quant.experts import plain_linears
from tokenmill.quant.job import Job, Opened, Outcome
from tokenmill.quant.store import BlockStore
from tokenmill.weights.checkpoint import read_json
from tokenmill.weights.convert import Item, items, write_config
from tokenmill.weights.export import Export, staged
from tokenmill.weights.format import NESTED


def write_folder(job: Job, opened: Opened, store: BlockStore, outcome: Outcome) -> None:
    """Tensors in the order of the source, each block at the place of its first tensor."""
    with staged(job.destination) as out:
        _write_tensors(job, opened, store, out)
        head = () if opened.arch.tied else (opened.family.names.head,)
        config = read_json(job.source / "config.json")
        joined = find_multimodal(config)
        # A config that is everyone's also says what of the tower stays plain.
        tower = joined.tower if joined is not None and not opened.inside else ()
        skip = (*head, *plain_linears(opened.family, opened.arch), *tower)
        if job.dtype is not None:
            _state_dtype(config, str(job.dtype).removeprefix("torch."))
        part = next((key for key in NESTED if key in config), "") if opened.inside else ""
        write_config(out, config, replace(outcome.scheme, skip=skip), part=part)
        out.copy_beside(job.source)
        _write_report(job, outcome, out)
        out.finish({"method": job.recipe.method})


def _state_dtype(config: dict[str, Any], name: str) -> None:
    """In the config, and in the parts of it that state one of their own."""
    config["dtype" if "dtype" in config else "torch_dtype"] = name
    for part in (value for value in config.values() if isinstance(value, dict)):
        part |= {key: name for key in ("dtype", "torch_dtype") if key in part}


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
