"""The demo's 4-bit copy of its model: made once, kept in the cache folder, and what its report says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Quantized in seconds on two cores; a larger model is left to `lite advise`.
MOST_BYTES = 64 << 20


def small_enough(source: Path) -> bool:
    from tokenmill.quant.report import source_facts

    return bool(source_facts(source)["bytes"] <= MOST_BYTES)


def make_copy(source: Path, fresh: bool) -> Path:
    """The 4-bit copy of a small model."""
    from tokenmill import env
    from tokenmill.cli.lite_made import is_copy, quantized_copy
    from tokenmill.quant.recipe import Recipe
    from tokenmill.quant.report import source_facts
    from tokenmill.quant.text import OWN, Choice

    recipe, choice = Recipe(duo=False, search_tokens=1024), Choice(OWN, samples=16, seqlen=256)
    folder = env.cache_dir() / "demo" / f"w4-{source_facts(source)['sha256'][:16]}"
    if not fresh and is_copy(folder, source, recipe, choice):
        print(f"{folder} is reused; --fresh makes it again")
        return folder
    return quantized_copy(source, folder, recipe, choice, fresh=True)


def show_report(folder: Path) -> None:
    """The report in five lines, and where the whole of it is."""
    from tokenmill.quant.report import PAGE, REPORT
    from tokenmill.weights.checkpoint import read_json

    told = read_json(folder / REPORT)
    made = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"weights      {made / 2**20:.1f} MiB, from {told['source']['bytes'] / 2**20:.1f} MiB")
    recipe = told["recipe"]
    print(f"method       {recipe['method']}, {recipe['bits']} bits, groups of {recipe['group']}")
    print(f"calibration  {told['calibration']['samples']} windows of {told['calibration']['window_tokens']} tokens of "
          f"{told['calibration']['origin']}")  # fmt: skip
    print(_quality(told["held_out"]))
    print(f"whole page   {folder / PAGE}")


def _quality(held: dict[str, Any] | None) -> str:
    if held is None:
        return "quality      not measured: no text was held out"
    return (f"quality      KL {held['kl']:.2e} nats, same preferred token {held['top1']:.1%}, perplexity "
            f"{held['perplexity_quantized']:.4g} against {held['perplexity_plain']:.4g}")  # fmt: skip
