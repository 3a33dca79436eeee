#!/usr/bin/env python3
"""Draws results of `tokenmill bench engine` as SVG: tokens/s by batch and engine, and shares of the memory's read rate.

    python scripts/plot_bench.py results.jsonl docs/images/bench.svg [--prompt 128] [--new 512]

Of static workloads of one shape, the median of each engine's runs at each batch. The right half has a curve where lines
hold `read_share` (bench engine --ceilings). Both axes of the left half are logarithmic. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections import defaultdict
from html import escape
from pathlib import Path

COLOURS = ("#1f5fbf", "#c8541c", "#2c8a4b", "#7a4fa3", "#777777")
WIDTH, HEIGHT, LEFT, TOP, GAP = 380, 260, 60, 40, 90
Points = dict[str, dict[int, float]]


def read(path: Path, prompt: int | None, new: int | None, key: str) -> Points:
    """engine -> batch -> median of `key`."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        shape = re.fullmatch(r"static:(\d+)x(\d+)x(\d+)", str(run.get("case", "")))
        if not shape or run.get(key) is None or run.get("failed"):
            continue
        batch, its_prompt, its_new = (int(n) for n in shape.groups())
        if prompt in (None, its_prompt) and new in (None, its_new):
            found[run.get("engine", "tokenmill"), batch].append(float(run[key]))
    points: Points = {}
    for (engine, batch), values in sorted(found.items()):
        points.setdefault(engine, {})[batch] = statistics.median(values)
    return points


class Axes:
    """One plot: where a batch and a value lie, and the lines of its frame."""

    def __init__(self, points: Points, left: int, title: str, top_value: float | None = None) -> None:
        batches = sorted({batch for line in points.values() for batch in line})
        values = [value for line in points.values() for value in line.values()]
        self.batches, self.left, self.title, self.linear = batches, left, title, top_value
        self.low = 0.0 if top_value else math.floor(math.log10(min(values)))
        self.high = top_value or math.ceil(math.log10(max(values)) + 1e-9)

    def x(self, batch: int) -> float:
        low, high = math.log2(self.batches[0]), math.log2(self.batches[-1])
        share = (math.log2(batch) - low) / (high - low) if high > low else 0.5
        return self.left + share * WIDTH

    def y(self, value: float) -> float:
        at = value if self.linear else math.log10(value)
        return TOP + HEIGHT * (1 - (at - self.low) / (self.high - self.low))

    def ticks(self) -> list[tuple[float, str]]:
        if self.linear:
            return [(value, f"{value:.0%}") for value in (0, 0.25, 0.5, 0.75, 1.0)]
        return [(10.0**power, f"{10**power:,}") for power in range(int(self.low), int(self.high) + 1)]

    def frame(self) -> list[str]:
        made = [text(self.left, TOP - 16, self.title, "start", 13)]
        for value, label in self.ticks():
            y, right = self.y(value), self.left + WIDTH
            made.append(f'<path d="M{self.left} {y:.1f}H{right}" stroke="#ddd"/>')
            made.append(text(self.left - 6, y + 4, label, "end"))
        made += [text(self.x(batch), TOP + HEIGHT + 18, str(batch)) for batch in self.batches]
        return [*made, text(self.left + WIDTH / 2, TOP + HEIGHT + 38, "batch")]


def text(x: float, y: float, words: str, anchor: str = "middle", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'


def curve(axes: Axes, line: dict[int, float], colour: str) -> list[str]:
    spots = [(axes.x(batch), axes.y(value)) for batch, value in sorted(line.items())]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots]


def draw(rates: Points, shares: Points, title: str) -> str:
    """The whole picture. `rates` may not be empty."""
    plots = [(rates, Axes(rates, LEFT, "output tokens/s"))]
    if shares:
        top = max(1.0, *(value for line in shares.values() for value in line.values()))
        plots.append((shares, Axes(shares, LEFT + WIDTH + GAP, "share of the measured read rate", top)))
    colours = dict(zip(sorted({*rates, *shares}, key=lambda e: (e != "tokenmill", e)), COLOURS, strict=False))
    body = []
    for points, axes in plots:
        body += axes.frame()
        for engine, line in points.items():
            body += curve(axes, line, colours[engine])
    foot = TOP + HEIGHT + 62
    for number, (engine, colour) in enumerate(colours.items()):
        x = LEFT + number * 130
        body += [f'<circle cx="{x}" cy="{foot - 4}" r="4" fill="{colour}"/>', text(x + 10, foot, engine, "start")]
    body.append(text(LEFT, foot + 22, title, "start"))
    size = LEFT + len(plots) * (WIDTH + GAP), foot + 34
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{size[0]}" height="{size[1]}" fill="white"/>', *body, "</svg>", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--prompt", type=int, help="only workloads with prompts of so many tokens")
    parser.add_argument("--new", type=int, help="only workloads that draw so many tokens")
    parser.add_argument("--title", default="", help="what was measured, where and when")
    asked = parser.parse_args()
    rates = read(asked.results, asked.prompt, asked.new, "new_tokens_per_s")
    if not rates:
        print(f"error: {asked.results} holds no complete static workload of that shape", file=sys.stderr)
        return 1
    shares = read(asked.results, asked.prompt, asked.new, "read_share")
    asked.picture.write_text(draw(rates, shares, asked.title or asked.results.name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
