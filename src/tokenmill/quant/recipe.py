"""What to make: the choices of one quantization run, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tokenmill.errors import ConfigError
from tokenmill.weights.convert import TARGETS
from tokenmill.weights.packing import BITS

ORDERS = ("act", "group", "none")
FP8_KINDS = ("tensor", "channel", "block")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Choices of a run; `method` is a module of `quant/methods`.

    to: disk format of integer weights, as `tokenmill convert-weights --to` names them ("": the method's own).
    group: in-features per scale, None for one scale per out-feature. order: how GPTQ visits columns. "act": by
    importance, over grids fixed beforehand; "group": groups by their most important column, columns by importance
    within, each grid made when its group begins; "none": as they lie. Files need no order with any of them.
    refine: GPTQ aims at the plain model's outputs, over searched grids, and goes over its codes again (None: as the
    method has it, awq_gptq does and gptq, which is the published one, does not).
    damp_frac: added to the Hessian's diagonal, of its mean. ratios: steps of the AWQ search; duo: search the form with
    weight magnitudes as well. clip: AWQ searches a clip. search_tokens: calibration tokens the AWQ and SmoothQuant
    searches run through a whole module (statistics and Hessians use all). fp8: how scales are laid out.
    block: (rows, columns) of FP8 blocks.
    """

    method: str = "awq_gptq"
    to: str = ""
    bits: int = 4
    group: int | None = 128
    symmetric: bool = False
    order: str = "act"
    refine: bool | None = None
    damp_frac: float = 0.01
    ratios: int = 20
    duo: bool = True
    clip: bool = True
    search_tokens: int = 16_384
    fp8: str = "block"
    block: tuple[int, int] = (128, 128)

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ConfigError(f"--w-bits {self.bits} is not served; {', '.join(map(str, BITS))} are")
        if self.to and self.to not in TARGETS:
            raise ConfigError(f"--to {self.to!r} is unknown; known are {', '.join(TARGETS)}")
        if self.group is not None and self.group <= 0:
            raise ConfigError(f"--w-group-size {self.group} must be positive, or -1 for one scale per out-feature")
        if not 0 < self.damp_frac < 1:
            raise ConfigError(f"damping {self.damp_frac} must lie between 0 and 1; 0.01 is usual")
        if self.order not in ORDERS:
            raise ConfigError(f"--order {self.order!r} is unknown; {', '.join(ORDERS)} are served")
        if self.fp8 not in FP8_KINDS:
            raise ConfigError(f"fp8 {self.fp8!r} is unknown; {', '.join(FP8_KINDS)} are served")

    def facts(self) -> dict[str, Any]:
        """For reports and manifests."""
        return asdict(self)
