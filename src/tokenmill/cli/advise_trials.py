"""The trials of `lite advise`: the four forms one after the other, a step back where quality fails, and the table."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.cli.measured import opened
from tokenmill.cli.progress import progress
from tokenmill.cli.table import table
from tokenmill.cli.told import size
from tokenmill.errors import CapacityError, ConfigError, FormatError, TokenmillError

if TYPE_CHECKING:
    from tokenmill.eval.advise import Needs, Trial
    from tokenmill.eval.compare import Comparison, Reference, Windows
    from tokenmill.eval.prompts import Answers, Prompt

HEADERS = ("weights", "KV", "KL", "top-1", "perplexity", "right", "weights size", "KV B/token", "tokens that fit",
           "tokens/s")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bench:
    """What every trial is measured with, and the memory it is planned for."""

    args: argparse.Namespace
    windows: Windows
    prompts: list[Prompt]
    memory_bytes: int


@dataclass(slots=True)
class Found:
    """Trials that ran, the plain one first, and forms that could not run here, with the reason."""

    trials: list[Trial] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


async def run_trials(bench: Bench, needs: Needs) -> Found:
    """Plain, then its KV quantized, then its weights, then both. A plain model that fails the check is said first."""
    from tokenmill.eval.advise import failure, refusal

    found = Found()
    model = bench.args.model
    reference = await _plain(bench, found)
    if failed := failure(found.trials[0], needs):
        print(f"First: {failed}.\nQuantization cannot mend that: take a larger model, or fine-tune this one; what "
              "follows only says how much each form changes.\n", flush=True)  # fmt: skip

    async def trial(weights: str, folder: str, kv: str) -> bool:
        """Whether this form runs here and is good enough."""
        try:
            made = await _trial(bench, reference, (weights, folder, kv))
        except (ConfigError, CapacityError, FormatError) as error:
            found.left_out.append(f"{weights} weights, {kv} KV: {error}")
            return False
        found.trials.append(made)
        return not refusal(made, found.trials[0], needs)

    kv = ""
    # A step back: 8 bits where 4 cost too much.
    for kind in ("int4", "int8"):
        if not kv and await trial("plain", model, kind):
            kv = kind
    copy = _copy(bench, found)
    if copy is not None and await trial("W4", str(copy), "auto") and kv:
        await trial("W4", str(copy), kv)
    return found


def _copy(bench: Bench, found: Found) -> Path | None:
    """The 4-bit copy; None where it cannot be made, and `found` says why."""
    from tokenmill.api.hub import resolve_model
    from tokenmill.cli.lite import SEARCH_TOKENS, device_of, group_of
    from tokenmill.cli.lite_made import quantized_copy
    from tokenmill.quant.recipe import Recipe
    from tokenmill.quant.text import OWN, Choice

    args = bench.args
    tokens = SEARCH_TOKENS[device_of("auto")] // (4 if args.fast else 1)
    recipe = Recipe(group=group_of(args.w_group_size), duo=not args.fast, search_tokens=tokens)
    choice = Choice(OWN, args.calib_samples, args.calib_seqlen)
    try:
        return quantized_copy(resolve_model(args.model), args.work_dir, recipe, choice, args.fresh)
    except TokenmillError as error:
        found.left_out.append(f"W4 weights: {error}")
        return None


async def _plain(bench: Bench, found: Found) -> Reference:
    from tokenmill.eval.compare import compare, read_reference
    from tokenmill.eval.prompts import answer_all

    async with opened(bench.args, bench.args.model, "auto") as engine:
        with progress("plain weights, plain KV", "windows") as show:
            reference = await read_reference(engine.engine, bench.windows, show)
        perplexity = (await compare(engine.engine, reference)).perplexity
        answers = await answer_all(engine, bench.prompts, bench.args.max_new_tokens)
        about = getattr(engine.engine, "about", {})
    found.trials.append(_made(bench, ("plain", "auto"), (None, perplexity, answers), about))
    return reference


async def _trial(bench: Bench, reference: Reference, form: tuple[str, str, str]) -> Trial:
    from tokenmill.eval.compare import compare
    from tokenmill.eval.prompts import answer_all

    weights, folder, kv = form
    async with opened(bench.args, folder, kv) as engine:
        with progress(f"{weights} weights, {kv} KV", "windows") as show:
            quality = await compare(engine.engine, reference, show)
        answers = await answer_all(engine, bench.prompts, bench.args.max_new_tokens)
        about = getattr(engine.engine, "about", {})
    return _made(bench, (weights, kv), (quality, quality.perplexity, answers), about)


def _made(
    bench: Bench, form: tuple[str, str], measured: tuple[Comparison | None, float, Answers], about: dict[str, Any]
) -> Trial:
    from tokenmill.eval.advise import Trial
    from tokenmill.runner.plan import kv_tokens

    free = bench.memory_bytes - about["weights_bytes"] - about["workspace_bytes"]
    share = bench.args.engine_cache_memory_frac or 0.8
    tokens = kv_tokens(max(free, 0), share, about["token_bytes"])
    quality, perplexity, answers = measured
    return Trial(*form, quality, perplexity, answers, about["weights_bytes"], about["token_bytes"], tokens)


def report(found: Found, needs: Needs) -> str:
    """The table, what was left out, and the recommendation."""
    from tokenmill.eval.advise import advise

    advice = advise(found.trials, needs)
    lines = [table(HEADERS, [_row(trial) for trial in found.trials]), ""]
    lines += [f"left out: {reason}" for reason in found.left_out]
    lines += [f"reason: {reason}" for reason in advice.reasons]
    lines.append(f"recommendation (KL of at most {needs.max_kl:g}): {advice.chosen.name}")
    if not advice.fits:
        lines.append("it does not hold all that is needed: fewer or shorter sequences, or more memory")
    return "\n".join(lines)


def _row(trial: Trial) -> tuple[str, ...]:
    quality, answers = trial.quality, trial.answers
    apart = ("-", "-") if quality is None else (f"{quality.kl:.2e}", f"{quality.top1:.1%}")
    return (
        trial.weights, trial.kv, *apart,
        f"{trial.perplexity:.4g}", f"{answers.passed} of {answers.judged}" if answers.judged else "-",
        size(trial.weights_bytes), str(trial.token_bytes), str(trial.tokens), f"{answers.tokens_per_s:.0f}",
    )  # fmt: skip
