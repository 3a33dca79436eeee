"""Choosing ops once, at model build: for each op the first backend of the device that serves it, else the reference.

A backend module may say `refuses(facts) -> str | None`: the reason it does not serve these facts. Whatever falls back
is logged once, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch

from tokenmill import env, find
from tokenmill.errors import ConfigError
from tokenmill.kernels.ops import Ops, Primitives
from tokenmill.log import get_logger

BACKENDS: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": ()}
BLOCKS = (
    "attn_in", "attend", "attn_out", "mlp_in", "mlp_out", "mla_in", "mla_attend", "moe_block", "final_norm", "head",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BindFacts:
    """What the choice may depend on beside the device. `roomy`: memory allows quantized weights to be held unpacked."""

    dtype: torch.dtype
    kv: str = "auto"
    roomy: bool = True


def bind(device: torch.device, facts: BindFacts, backends: tuple[str, ...] | None = None) -> Ops:
    """The table of ops for a device. `backends` in order of preference; () is the reference alone."""
    order = order_of(device) if backends is None else backends
    chosen: dict[str, str] = {}
    primitives = Primitives(**{f.name: _choose(f.name, order, facts, chosen) for f in fields(Primitives)})
    blocks = {name: partial(_choose(name, order, facts, chosen), primitives) for name in BLOCKS}
    return Ops(name="+".join((*order, "reference")), primitives=primitives, backends=chosen, **blocks)


def order_of(device: torch.device) -> tuple[str, ...]:
    """Backends of a device in order; on a GPU the environment may say otherwise (TOKENMILL_KERNELS)."""
    asked = env.kernels() if device.type == "cuda" else None
    if asked is None:
        return BACKENDS.get(device.type, ())
    known = [name for name in find.folders("tokenmill.kernels") if name not in ("cases", "cpu", "reference")]
    if unknown := [name for name in asked if name not in known]:
        raise ConfigError(f"TOKENMILL_KERNELS names {', '.join(unknown)}; a GPU has {', '.join(known)} and reference")
    return asked


def _choose(op: str, order: tuple[str, ...], facts: BindFacts, chosen: dict[str, str]) -> Callable[..., Any]:
    for backend in (*order, "reference"):
        package = f"tokenmill.kernels.{backend}"
        if op not in find.names(package):
            continue
        module = find.load(package, op)
        reason = module.refuses(facts) if hasattr(module, "refuses") else None
        if reason is None:
            chosen[op] = backend
            function: Callable[..., Any] = getattr(module, op)
            return function
        get_logger().info("%s does not serve %s here: %s", backend, op, reason)
    raise LookupError(f"no backend of {order} and no reference has the op {op}")
