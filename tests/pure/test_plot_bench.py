"""The picture of results is well-formed, has every engine, and puts values where its axes say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

SCRIPT = Path(__file__).parents[2] / "scripts" / "plot_bench.py"
SVG = "{http://www.w3.org/2000/svg}"


def plot(folder: Path, lines: list[dict[str, object]]) -> subprocess.CompletedProcess[str]:
    (folder / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, str(SCRIPT), str(folder / "r.jsonl"), str(folder / "p.svg"), "--title", "a <b> & c"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_decade_is_a_decade(tmp_path: Path) -> None:
    runs = [("tokenmill", 1, 100), ("tokenmill", 16, 1000), ("vllm", 1, 10), ("vllm", 16, 100), ("tokenmill", 16, 9e9)]
    lines: list[dict[str, object]] = [
        {"case": f"static:{batch}x128x512", "engine": engine, "new_tokens_per_s": rate, "failed": int(rate == 9e9)}
        for engine, batch, rate in runs
    ]
    assert plot(tmp_path, [*lines, {"case": "trace:9", "new_tokens_per_s": 5}]).returncode == 0
    tree = ElementTree.parse(tmp_path / "p.svg")
    ours, theirs = (
        [tuple(map(float, spot.split(","))) for spot in line.attrib["points"].split()]
        for line in tree.iter(f"{SVG}polyline")
    )
    # One decade up from batch 1 to 16, and one between the engines.
    decade = ours[0][1] - ours[1][1]
    assert decade > 50 and abs(theirs[0][1] - ours[0][1] - decade) <= 0.2
    assert ours[0][0] < ours[1][0] and ours[0][0] == theirs[0][0]
    words = [text.text for text in tree.iter(f"{SVG}text")]
    assert {"tokenmill", "vllm", "1", "16", "1,000", "a <b> & c"} <= set(words) and "9,000,000,000" not in words


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    done = plot(tmp_path, [{"case": "trace:9", "new_tokens_per_s": 5}])
    assert done.returncode == 1 and "no complete static workload" in done.stderr
    assert not (tmp_path / "p.svg").exists()
