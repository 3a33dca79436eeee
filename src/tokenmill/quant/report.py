"""What a quantized folder tells its reader: `quantization_report.json`, and REPORT.md with a plot beside it.

Both say the same: how the folder was made, on what, and how far it is from its source on text no method saw. The plot
is the error after each block as an SVG, written here: no drawing package is needed.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tokenmill import __version__
from tokenmill.quant.job import Job, Outcome

REPORT = "quantization_report.json"
PAGE = "REPORT.md"
PLOT = "quantization_report.svg"
WIDTH, HEIGHT, MARGIN = 640, 240, 56


def facts(job: Job, outcome: Outcome) -> dict[str, Any]:
    """The report as data."""
    return {
        "tokenmill": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": job.device.type,
        "source": source_facts(job.source),
        "recipe": job.recipe.facts(),
        "calibration": {
            "origin": job.tokens.origin,
            "samples": len(job.tokens.samples),
            "window_tokens": len(next(iter((*job.tokens.samples, *job.tokens.held)), ())),
            "seed": job.tokens.seed,
            "sha256": job.tokens.digest,
        },
        "relative_error_after_layer": outcome.errors,
        "held_out": None if outcome.quality is None else outcome.quality.facts(),
    }


def source_facts(folder: Path) -> dict[str, Any]:
    """What tells one checkpoint from another without reading its weights: their sizes, and config.json itself."""
    weights = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    config = (folder / "config.json").read_bytes()
    manifest = folder / "manifest.json"
    told = manifest.read_bytes() if manifest.is_file() else b""
    return {
        "name": folder.name,
        "bytes": sum(p.stat().st_size for p in weights),
        "sha256": hashlib.sha256(config + told + repr([p.name for p in weights]).encode()).hexdigest(),
    }


def page(told: dict[str, Any], num_bytes: int) -> str:
    """REPORT.md of a report whose folder has tensors of `num_bytes`."""
    recipe, text, source = told["recipe"], told["calibration"], told["source"]
    lines = [
        f"# How {source['name']} was quantized",
        "",
        f"Method {recipe['method']}, {_scheme(recipe)}.",
        "",
        "| | |", "|---|---|",
        f"| weights | {num_bytes / 2**20:.1f} MiB, from {source['bytes'] / 2**20:.1f} MiB "
        f"({num_bytes / max(source['bytes'], 1):.0%}) |",
        f"| calibration | {text['samples']} windows of {text['window_tokens']} tokens of {text['origin']}, "
        f"seed {text['seed']} |",
        f"| calibration SHA-256 | {text['sha256']} |",
        f"| made with | tokenmill {told['tokenmill']}, torch {told['torch']}, Python {told['python']}, "
        f"{told['device']} |",
        "", "## Quality on text that was held out", "", *_quality(told["held_out"]), "",
        "## Error after each block", "",
        f"![relative error after each block]({PLOT})", "",
        "Squared distance of the hidden state from the source model's, as a share of its square.", "",
        "| block | error |", "|---:|---:|",
        *(f"| {i} | {error:.3e} |" for i, error in enumerate(told["relative_error_after_layer"])),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _scheme(recipe: dict[str, Any]) -> str:
    if recipe["method"] == "fp8":
        return f"fp8 e4m3 with a scale per {recipe['fp8']}"
    if recipe["method"] == "smoothquant":
        return "int8 weights and activations, a scale per out-feature and per token"
    group = f"groups of {recipe['group']}" if recipe["group"] else "a scale per out-feature"
    return f"{recipe['bits']} bits, {group}, {'symmetric' if recipe['symmetric'] else 'asymmetric'}"


def _quality(held: dict[str, Any] | None) -> list[str]:
    if held is None:
        return ["Not measured: the calibration text was too short to hold any of it out."]
    return [
        "| | |", "|---|---|",
        f"| KL divergence from the source | {held['kl']:.3e} nats |",
        f"| same preferred token | {held['top1']:.2%} |",
        f"| perplexity | {held['perplexity_quantized']:.4f}, source {held['perplexity_plain']:.4f} |",
        f"| tokens | {held['tokens']} |",
    ]  # fmt: skip


def plot(errors: Sequence[float]) -> str:
    """Bars of the error after each block on a logarithmic axis."""
    shown = [max(error, 1e-12) for error in errors] or [1e-12]
    low, high = math.floor(math.log10(min(shown)) - 1e-9), math.ceil(math.log10(max(shown)) + 1e-9)
    scale = (HEIGHT - 2 * MARGIN) / max(high - low, 1)
    step = (WIDTH - 2 * MARGIN) / len(shown)
    bottom = HEIGHT - MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{WIDTH / 2}" y="24" text-anchor="middle">relative squared error after each block</text>',
    ]
    for power in range(low, high + 1):
        y = bottom - (power - low) * scale
        parts.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    every = max(1, len(shown) // 16)
    for i, error in enumerate(shown):
        x, tall = MARGIN + i * step, max((math.log10(error) - low) * scale, 1.0)
        parts.append(f'<rect x="{x + step * 0.1:.1f}" y="{bottom - tall:.1f}" width="{step * 0.8:.1f}" '
                     f'height="{tall:.1f}" fill="#4477aa"/>')  # fmt: skip
        if i % every == 0:
            parts.append(f'<text x="{x + step / 2:.1f}" y="{bottom + 16}" text-anchor="middle">{i}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
