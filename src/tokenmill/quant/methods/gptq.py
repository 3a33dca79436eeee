"""GPTQ (arXiv 2210.17323): column by column, each column's rounding error is spread over the columns still to come.

Inputs come from the model quantized so far, site by site within the block ("true sequential"). Columns are visited by
falling importance over grids fixed beforehand from the original groups, or group by group (the most important first,
by importance within), or as they lie; then a group's grid is made when its first column is reached. Groups stay where
they are in every order: the files need none and every kernel runs them.

With `refine`, three things more, none of which the files or the kernels see. The weights that are rounded are those
whose outputs, on the quantized model's inputs, are nearest to the plain outputs on the plain inputs (least squares,
damped as the Hessian is), so that later linears make up for what earlier ones lost. Grids fixed beforehand are searched
(`search_grid`), weighted by what an error in a column costs once the later ones have made up for it. Codes are visited
again (`polish`).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.errors import FormatError
from tokenmill.log import get_logger
from tokenmill.quant.block import SITES, Block
from tokenmill.quant.grid import Grid, make_grid, search_grid, split_groups
from tokenmill.quant.method import Feed, integer_scheme, settle
from tokenmill.quant.polish import Places, polish
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.stats import gram
from tokenmill.weights.contract import Weight
from tokenmill.weights.scheme import Scheme

NEEDS_DATA = True
COLUMNS = 128
DAMP_STEP = 0.01
MAX_DAMP = 0.5


def scheme(recipe: Recipe) -> Scheme:
    return integer_scheme(recipe, "gptq")


def quantize(block: Block, feed: Feed, recipe: Recipe) -> dict[str, Weight]:
    """Walks the sites; each site's Hessian is shared by the linears that read it."""
    made: dict[str, Weight] = {}
    plain, aims = replace_linears(block), feed.plain if recipe.refine else None
    residuals = feed.quantized
    for site in SITES:
        names = block.facts.names(site)
        first = block.linears[names[0]]
        inputs = (block.site_input(site, residual) for residual in residuals)
        hessian = Hessian(gram(inputs, first.shape[1], first.device), recipe, "/".join(names))
        drift = None if aims is None else site_drift(site, (plain, aims), (block, residuals))
        for name in names:
            target = block.linears[name] if drift is None else hessian.aim(block.linears[name], drift)
            made[name] = settle(block, name, solve(target, hessian, recipe))
        if site == "out":
            residuals = [block.advance(site, residual) for residual in residuals]
            aims = aims and [plain.advance(site, residual) for residual in aims]
    return made


def replace_linears(block: Block) -> Block:
    """The block with linears of its own, which stay when the other's are quantized."""
    twin = copy(block)
    twin.linears = dict(block.linears)
    return twin


def site_drift(site: str, plain: tuple[Block, list[Tensor]], quantized: tuple[Block, list[Tensor]]) -> Tensor:
    """How the plain model's inputs differ from the quantized one's, seen along these: mean of (p - q) q^T [M, M].

    It is fitted to: with few tokens for M in-features most of a fit is chance, so it counts by 1 - M / tokens.
    """
    total, tokens = torch.zeros(()), 0
    for residual_p, residual_q in zip(plain[1], quantized[1], strict=True):
        p, q = plain[0].site_input(site, residual_p), quantized[0].site_input(site, residual_q)
        total = total.to(q.device) + (p - q).T @ q
        tokens += len(q)
    return total / tokens * max(0.0, 1 - total.shape[-1] / tokens)


class Hessian:
    """The damped Hessian of one site and its inverse's upper Cholesky factor, columns in visiting order."""

    def __init__(self, gram_MM: Tensor, recipe: Recipe, where: str):
        diagonal = gram_MM.diagonal()
        if not bool(torch.isfinite(diagonal).all()):
            raise FormatError(f"{where}: the inputs hold NaN or infinity; look at the calibration text and the source")
        self.dead = diagonal == 0
        matrix = gram_MM.clone()
        matrix.diagonal()[self.dead] = 1.0
        self.order = visiting(matrix.diagonal(), recipe)
        self.matrix, self.upper = self._factor(matrix[self.order][:, self.order], recipe.damp_frac, where)

    def aim(self, weight_NM: Tensor, drift_MM: Tensor) -> Tensor:
        """The weight that gives, on the inputs of the Hessian, what `weight_NM` gives on inputs that drifted."""
        lost_NM = (weight_NM @ drift_MM)[:, self.order]
        change = torch.empty_like(weight_NM)
        change[:, self.order] = lost_NM @ self.upper.T @ self.upper
        return weight_NM + change

    def importance(self) -> Tensor:
        """Per in-feature: what a squared error there costs once the columns behind it have made up for it."""
        found = torch.empty_like(self.upper.diagonal())
        found[self.order] = self.upper.diagonal().reciprocal().square()
        return found

    @staticmethod
    def _factor(matrix: Tensor, damp_frac: float, where: str) -> tuple[Tensor, Tensor]:
        """The damped matrix and its inverse's factor."""
        mean = matrix.diagonal().mean()
        while damp_frac <= MAX_DAMP:
            damped = matrix.clone()
            damped.diagonal().add_(damp_frac * mean)
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not int(failed):
                upper: Tensor
                upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
                if not int(failed) and bool(torch.isfinite(upper).all()):
                    return damped, upper
            get_logger().warning("%s: damping %.3g is too little, trying %.3g", where, damp_frac, damp_frac + DAMP_STEP)
            damp_frac += DAMP_STEP
        raise FormatError(f"{where}: no damping up to {MAX_DAMP} lets the Hessian be inverted: calibrate on more text")


def visiting(diagonal_M: Tensor, recipe: Recipe) -> Tensor:
    """In-features in the order they are visited."""
    if recipe.order == "none":
        return torch.arange(len(diagonal_M), device=diagonal_M.device)
    if recipe.order == "act":
        return torch.argsort(diagonal_M, descending=True, stable=True)
    groups_Qg = split_groups(diagonal_M[None], recipe.group)[0]
    within_Qg = torch.argsort(groups_Qg, dim=1, descending=True, stable=True)
    starts_Q1 = torch.arange(len(groups_Qg), device=diagonal_M.device)[:, None] * groups_Qg.shape[1]
    first_Q = torch.argsort(groups_Qg.amax(1), descending=True, stable=True)
    return (within_Qg + starts_Q1)[first_Q].flatten()


@dataclass(slots=True)
class _Columns:
    """A weight being solved: columns in visiting order, and where each lies in the original."""

    weight_NM: Tensor
    codes_NM: Tensor
    places: list[int]


def solve(weight_NM: Tensor, hessian: Hessian, recipe: Recipe) -> Weight:
    """The quantized weight of one linear."""
    original = weight_NM.clone()
    original[:, hessian.dead] = 0.0
    late = recipe.order != "act"
    searched = bool(recipe.refine) and not late
    grid = search_grid(original, hessian.importance(), recipe) if searched else make_grid(original, recipe)
    order = hessian.order
    columns = _Columns(original[:, order].clone(), torch.empty_like(original), order.tolist())
    step = _batch_columns(recipe)
    for start in range(0, len(order), step):
        stop = min(start + step, len(order))
        errors = _solve_span(columns, (start, stop), hessian.upper, grid, recipe if late else None)
        columns.weight_NM[:, stop:] -= errors @ hessian.upper[start:stop, stop:]
    if recipe.refine:
        scales, zeros = (part.expand_as(original)[:, order] for part in grid.spread(original.shape[1]))
        places = Places(scales, zeros, grid.top)
        columns.codes_NM = polish(columns.codes_NM, places, original[:, order], hessian.matrix)
    codes = torch.empty_like(columns.codes_NM)
    codes[:, order] = columns.codes_NM
    return grid.weight(codes)


def _batch_columns(recipe: Recipe) -> int:
    """Columns between two updates of all the rest: groups must not begin inside a batch and end outside it."""
    group = recipe.group or COLUMNS
    return group if COLUMNS % group and group % COLUMNS else COLUMNS


def _solve_span(columns: _Columns, span: tuple[int, int], upper: Tensor, grid: Grid, late: Recipe | None) -> Tensor:
    """One lazy batch of columns; the scaled errors [N, stop - start] that later columns have to take up.

    late: grids are made when a group's first column is reached, from the weights as they are by then.
    """
    start, stop = span
    work = columns.weight_NM[:, start:stop].clone()
    errors, top = torch.empty_like(work), grid.top
    for i in range(stop - start):
        place = columns.places[start + i]
        if late is not None and (start + i) % (late.group or len(columns.places)) == 0:
            _refit(grid, columns, work, (start, i), late)
        scales, zeros = grid.column(place)
        codes = (torch.round(work[:, i] / scales) + zeros).clamp(0, top)
        columns.codes_NM[:, start + i] = codes
        errors[:, i] = (work[:, i] - (codes - zeros) * scales) / upper[start + i, start + i]
        work[:, i:] -= errors[:, i, None] * upper[start + i, start + i : stop]
    return errors


def _refit(grid: Grid, columns: _Columns, work: Tensor, at: tuple[int, int], recipe: Recipe) -> None:
    """The grid of the group that begins here, from its columns as they stand."""
    start, i = at
    size = recipe.group or columns.weight_NM.shape[1]
    first = start + i
    current = torch.cat([work[:, i : i + size], columns.weight_NM[:, start + work.shape[1] : first + size]], 1)
    fresh = make_grid(current[:, :size], recipe)
    group = columns.places[first] // size
    grid.scales_NQ[:, group], grid.zeros_NQ[:, group] = fresh.scales_NQ[:, 0], fresh.zeros_NQ[:, 0]
