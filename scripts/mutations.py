"""Plants one-line bugs in the scheduler and shows that its tests catch them.

Each bug is put into a copy of the package in a temporary folder; then random workloads (tests/support/workloads.py)
and, where those find nothing, the proofs of the seams run against that copy. Prints a table; exits 1 where fewer than
`LEAST_FRAC` of the bugs are caught or one cannot be planted any more (its line has changed: plant it anew).

    python scripts/mutations.py [--workloads 1500] [--only NAME]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENGINE = "src/tokenmill/engine"
LEAST_FRAC = 10 / 12
SECONDS = 60
# Most bugs show within so many workloads; the rest of them is only run for what the proofs do not see either.
FEW = 150


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    line: str
    planted: str


BUGS = (
    Bug("a hit block keeps its place among the free", "blocks.py", "del self._cached[block]", "pass"),
    Bug("a hit does not count", "blocks.py", "self.refs[block] += 1", "self.refs[block] = max(self.refs[block], 1)"),
    Bug("keys forget what came before", "blocks.py", "blake2b(keys[-1] if keys else root,", "blake2b(root,"),
    Bug(
        "an evicted block stays indexed",
        "blocks.py",
        "            self._forget(block, key)\n            self._push(block)",
        "            self._push(block)",
    ),
    Bug("cache salts do not count", "admission.py", "capacity.salt, request.cache_salt)", "capacity.salt)"),
    Bug(
        "the rope base is not in the keys",
        "admission.py",
        "root_key(request.adapter, base,",
        "root_key(request.adapter,",
    ),
    Bug("a hit may be the whole prompt", "tables.py", "most = len(seq.tokens) - 1", "most = len(seq.tokens)"),
    Bug("hit blocks are counted as free", "tables.py", " + group.pool.idle_among(blocks)", ""),
    Bug(
        "a window is one token too short",
        "tables.py",
        "(next_positions - self.window + 1)",
        "(next_positions - self.window + 2)",
    ),
    Bug(
        "a block is indexed before its last token ran",
        "tables.py",
        "full = (len(tokens) - 1) // group",
        "full = len(tokens) // group",
    ),
    Bug("drafts get no blocks", "planner.py", "most if drafts is None else most + drafts)", "most)"),
    Bug(
        "the limit is seen one token late",
        "planner.py",
        "ready = most < state.limit[slots]",
        "ready = most <= state.limit[slots]",
    ),
    Bug("running rows do not spend the budget", "planner.py", "draft.budget.tokens -= tokens", "pass"),
    Bug(
        "the oldest is preempted",
        "planner.py",
        "max(rivals, key=lambda s: s.rank)",
        "min(rivals, key=lambda s: s.rank)",
    ),
    Bug("a row of this plan may be preempted", "planner.py", "and self.state.planned_in[other.slot] != self.step", ""),
    Bug(
        "no history after a preemption",
        "planner.py",
        "history=seq.tokens.copy()",
        "history=seq.tokens[: seq.prompt_tokens].copy()",
    ),
    Bug(
        "the first token of a grammar is free",
        "planner.py",
        "            draft.masked.append(slot)",
        "            pass",
    ),
    Bug(
        "results of a former sequence are taken",
        "committer.py",
        "self.state.epoch[slots] == result.epochs",
        "self.state.epoch[slots] >= 0",
    ),
    Bug(
        "the first token never stops",
        "committer.py",
        "(base >= self.state.stop_from[slots])",
        "(base > self.state.stop_from[slots])",
    ),
    Bug(
        "tokens after a stop token are kept", "committer.py", "np.where(stopped, hits.argmax(1) + 1, counts)", "counts"
    ),
    Bug("bounds are never turned into facts", "committer.py", "state.most[slots] += drawn.counts - bounds", "pass"),
    Bug("blocks of failed prompts are indexed", "committer.py", "drawn.slots[drawn.counts > 0])", "drawn.slots)"),
    Bug("a retired sequence keeps its blocks", "desk.py", "        self.tables.release(slot)\n", ""),
    Bug("an epoch never ends", "state.py", "self.epoch[slot] += 1", "pass"),
    Bug("keys forget images", "blocks.py", "        for image in media:", "        for image in ():"),
    Bug("an image of this step may go", "images.py", " if self._used_in[digest] != step]", "]"),
    Bug("a dropped image is not told", "images.py", "self._dropped.append(digest)", "pass"),
    Bug("a cut image starts anew", "images.py", "image.digest, first - image.offset,", "image.digest, 0,"),
    Bug("an image that has no room is run", "planner.py", "return image.offset - start", "return count"),
    Bug("a failed image stays", "committer.py", "                self.desk.images.forget(seq.request.media)\n", ""),
    Bug("a chunk cuts an image that sees ahead", "planner.py", "self.capacity.ahead and count > 0", "False"),
    Bug("text behind a grid counts its vectors", "images.py", "shift += max(image.grid) - image.num_tokens", "pass"),
    Bug("answers behind a grid count its vectors", "planner.py", "turn_shift=shift_of(request.media)", "turn_shift=0"),
    Bug("a cut grid starts anew", "images.py", "order - image.offset", "order - max(start, image.offset)"),
    Bug("keys forget grids", "blocks.py", "{image.grid or ''}", ""),
    Bug("a released slot is not told", "desk.py", "self.released.append(slot)", "pass"),
)


def plant(bug: Bug, into: Path) -> bool:
    """Copies the package and its test support, and breaks one line; False where the line is not there exactly once."""
    shutil.copytree(ROOT / "src", into / "src", ignore=shutil.ignore_patterns("__pycache__", "demo_model"))
    shutil.copytree(ROOT / "tests", into / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", into)
    path = into / ENGINE / bug.file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(bug.line, bug.planted), encoding="utf-8")
    return source.count(bug.line) == 1


def run(folder: Path, *command: str) -> str | None:
    """What a check says against it, in a line; None where it passes."""
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {SECONDS} s"
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith(("FAILED", "AssertionError"))]
    return lines[-1] if lines else f"exit status {done.returncode}"


def try_bug(bug: Bug, workloads: int) -> str:
    """How the bug was caught, or that it was not."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if not plant(bug, folder):
            return "NOT PLANTED: the line has changed"
        few = min(FEW, workloads)
        said = run(folder, "-m", "tests.support.workloads", "0", str(few))
        if said is None:
            proofs = ("tests/pure/test_scheduler_seams.py", "tests/pure/test_scheduler_images.py")
            said = run(folder, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *proofs)
            if said is not None:
                return f"caught by seams: {said.rpartition('::')[2]}"
            said = run(folder, "-m", "tests.support.workloads", str(few), str(workloads))
        return "NOT CAUGHT" if said is None else f"caught by workloads: {said.removeprefix('AssertionError: ')}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", type=int, default=1500)
    parser.add_argument("--only", default="", help="bugs whose name contains this")
    options = parser.parse_args()
    bugs = [bug for bug in BUGS if options.only in bug.name]
    caught, gone, begun = 0, 0, time.monotonic()
    for bug in bugs:
        found = try_bug(bug, options.workloads)
        caught += found.startswith("caught")
        gone += found.startswith("NOT PLANTED")
        print(f"{bug.file:13} {bug.name:46} {found[:110]}", flush=True)
    print(f"{caught} of {len(bugs)} caught, {time.monotonic() - begun:.0f} s")
    return 0 if caught >= LEAST_FRAC * len(bugs) and not gone else 1


if __name__ == "__main__":
    sys.exit(main())
