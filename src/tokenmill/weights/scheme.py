"""How the linears of a checkpoint are stored: plain data between a format, the source and the writer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenmill.errors import FormatError
from tokenmill.log import safe


@dataclass(frozen=True, slots=True)
class Rule:
    """Linears whose name matches `pattern` (searched from the start) follow `scheme`; None leaves them plain."""

    pattern: str
    scheme: Scheme | None


@dataclass(frozen=True, slots=True)
class Scheme:
    """One format's parameters.

    format: module name in `weights/formats`; dialect: the format's own variant ("gemm", "gptq_v2", "pack-quantized").
    weight: the class it gives ("dense", "int", "int8-channel", "fp8-tensor", "fp8-channel", "fp8-block", "mxfp4").
    group: in-features per scale, None for one scale per out-feature. block: (N, M) of FP8 blocks.
    activation: how inputs are quantized at run time, one of `classes.ACTIVATIONS`.
    act_order: groups may be out of order (GPTQ desc_act, compressed-tensors actorder "group").
    skip: names (or patterns, as the format spells them) that stay plain. rules: overrides by name, first match wins.
    """

    format: str
    weight: str = "dense"
    dialect: str = ""
    bits: int = 16
    group: int | None = None
    symmetric: bool = True
    block: tuple[int, int] | None = None
    activation: str = "none"
    act_order: bool = False
    skip: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    def at(self, name: str) -> Scheme | None:
        """The scheme of the linear called `name`."""
        for rule in self.rules:
            if re.match(rule.pattern, name):
                return rule.scheme
        return self


@dataclass(frozen=True, slots=True)
class Suffixes:
    """What follows a linear's name and `joiner` on disk. All of `needed` make the linear this format's."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    joiner: str = "."


def read_group(value: object) -> int | None:
    """A config's group_size: None for one scale per out-feature (-1 or absent), else a positive count."""
    if value is None or value == -1:
        return None
    if type(value) is not int or value <= 0:
        raise FormatError(f"group_size must be a positive number or -1, not {safe(value, 40)}")
    return value


def read_block(value: object) -> tuple[int, int]:
    """A config's block: two positive counts, (rows, columns)."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int and v > 0 for v in value):
        return value[0], value[1]
    raise FormatError(f"a block must be two positive numbers, not {safe(value, 60)}")
