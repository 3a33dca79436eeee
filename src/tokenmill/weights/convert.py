"""From one disk format of integer weights to another, codes and scales untouched.

A linear at a time: read by the source's format, written by the target's. What the target cannot hold (a zero outside
its range, act-order, a width) is a FormatError that names the linear, and nothing is written. "safetensors" keeps the
format and only changes the container: the way out of pickled `*.bin` files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenmill.errors import ConfigError, FormatError
from tokenmill.log import safe
from tokenmill.weights.checkpoint import read_json
from tokenmill.weights.classes import IntGroup
from tokenmill.weights.contract import Weight
from tokenmill.weights.export import Export, staged
from tokenmill.weights.format import NESTED, load_format
from tokenmill.weights.scheme import Scheme
from tokenmill.weights.source import FolderSource, open_folder

# Target -> format, dialect. "gptq" is v1 for symmetric weights, which every reader takes, else v2: v1 has no zero of 0.
TARGETS = {
    "awq": ("awq", "gemm"),
    "gptq": ("gptq", ""),
    "gptq_v1": ("gptq", "gptq"),
    "gptq_v2": ("gptq", "gptq_v2"),
    "compressed-tensors": ("compressed_tensors", "pack-quantized"),
}
KEEP = "safetensors"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Item:
    """What is written together: a plain tensor (no suffixes) or the quantized tensors of one linear."""

    name: str
    suffixes: tuple[str, ...] = ()


def convert_weights(src: str | Path, dst: str | Path, to: str, progress: Progress | None = None) -> None:
    """Writes `src` as a new folder `dst` in the format `to`, one of TARGETS or "safetensors"."""
    folder = Path(src)
    wanted = to.lower().replace("compressed_tensors", "compressed-tensors")
    if wanted not in (*TARGETS, KEEP):
        raise ConfigError(f"--to {safe(to, 40)!r} is unknown; known are {', '.join((*TARGETS, KEEP))}")
    source = open_folder(folder)
    target = None if wanted == KEEP else target_scheme(source.scheme, wanted)
    with staged(Path(dst)) as out:
        used = _write_all(source, target, out, progress or (lambda done, total: None))
        write_config(out, read_json(folder / "config.json"), used or source.scheme, rewrite=used is not None)
        if used is None and (folder / "quantize_config.json").is_file():
            out.add_bytes("quantize_config.json", (folder / "quantize_config.json").read_bytes())
        out.copy_beside(folder)
        out.finish({"converted_from": source.scheme.format, "converted_to": wanted})


def target_scheme(scheme: Scheme, to: str) -> Scheme:
    """The scheme of `to` that holds what `scheme` describes."""
    if scheme.weight != "int":
        raise FormatError(f"only integer weights are converted; this checkpoint is {scheme.format} {scheme.weight}")
    if any(rule.scheme is not None for rule in scheme.rules):
        raise FormatError("this checkpoint has different settings for different linears, which is not converted")
    name, dialect = TARGETS[to]
    if not dialect:
        dialect = "gptq" if scheme.symmetric else "gptq_v2"
    symmetric = scheme.symmetric and name != "awq"
    return replace(scheme, format=name, dialect=dialect, symmetric=symmetric, rules=(), skip=())


def items(source: FolderSource) -> Iterator[Item]:
    """The checkpoint's contents in its own order: linears whole, at the place of their first tensor."""
    seen: set[str] = set()
    for name in source.names():
        module, _, suffix = name.rpartition(".")
        suffixes = source.quantized(module)
        if suffix not in suffixes:
            yield Item(name)
        elif module not in seen:
            seen.add(module)
            yield Item(module, suffixes)


def _write_all(source: FolderSource, target: Scheme | None, out: Export, progress: Progress) -> Scheme | None:
    """Writes every item; the target scheme as it turned out: what stayed plain, and whether any order was kept."""
    done, total = 0, len(source.names())
    plain: list[str] = []
    ordered = False
    for item in items(source):
        if target is None or not item.suffixes:
            names = [f"{item.name}.{s}" for s in item.suffixes] or [item.name]
            for name in names:
                out.add(name, source.tensor(name))
            plain += [n.removesuffix(".weight") for n in names if _is_plain_linear(source, n)]
        else:
            weight = source.weight(item.name)
            ordered |= isinstance(weight, IntGroup) and weight.g_idx is not None
            for suffix, tensor in write_linear(item.name, weight, target).items():
                out.add(f"{item.name}.{suffix}", tensor)
        done += len(item.suffixes) or 1
        progress(done, total)
    return None if target is None else replace(target, act_order=ordered, skip=tuple(plain))


def write_linear(name: str, weight: Weight, scheme: Scheme) -> dict[str, Tensor]:
    """The linear's tensors by suffix. FormatError names the linear."""
    try:
        return load_format(scheme.format).write(weight, scheme)
    except FormatError as error:
        raise FormatError(f"{safe(name, 200)}: {error}") from error


def _is_plain_linear(source: FolderSource, name: str) -> bool:
    """Matrices that are no embedding: what other readers must be told to leave alone."""
    return name.endswith(".weight") and len(source.checkpoint.info(name).shape) == 2 and "embed" not in name


def write_config(out: Export, config: dict[str, Any], scheme: Scheme, rewrite: bool = True, part: str = "") -> None:
    """config.json with the scheme's quantization_config in it; GPTQ's second file where that is the format.

    part: the nested config it goes into ("": where one was, else at the top).
    """
    config = copy.deepcopy(config)
    if rewrite:
        announced = load_format(scheme.format).manifest(scheme)
        place = next((config[k] for k in NESTED if "quantization_config" in (config.get(k) or {})), config)
        if part:
            config.pop("quantization_config", None)
            place = config[part]
        place["quantization_config"] = announced
        if scheme.format == "gptq":
            out.add_json("quantize_config.json", announced)
    out.add_json("config.json", config)
