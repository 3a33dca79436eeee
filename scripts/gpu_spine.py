#!/usr/bin/env python3
"""Everything about the runner that only a GPU can show, in one command and one table. Nothing stops it.

    python scripts/gpu_spine.py --folder /dev/shm/ckpt [--parts ...] [--layers 32] [--json FILE] [--limit-s 540]

Every part runs in a process of its own with a time limit, so that a crash or a hang of one is a line in the table.
Kernels are those that TOKENMILL_KERNELS names, as everywhere:

    facts     torch, driver, backends that were bound
    make      random checkpoints of 7B shape in FOLDER: `full` (fp16, --layers) and `four` (4 layers), if not there
    warm      compiles `four`'s kernels side by side (Triton's only; nothing to do for plain torch)
    load      seconds of each phase of a start, bytes of weights and cache, tokens
    logits    4 layers of full width: fp16 error against fp32, over plain fp16 torch's (at most 2)
    graphs    steady steps are graph replays, and say what eager says (but for near ties)
    gap       idle time of the GPU between decode steps, p50, at batch 1 and 64 (at most 200 us)
    static    static workloads of batch 1, 16 and 64 through the engine in its own process
    trace     the 1,000-request trace, greedy
    tests     tests/gpu

Needs msgspec beside torch, transformers, safetensors, tokenizers, numpy and pytest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
RUNNER = "tokenmill.runner.runner:make_runner"
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "float16",
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 92544, "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-5,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
}
# Context that measurements need: the trace holds 2,048 tokens at most.
CONTEXT = 2304
MOST_GAP_US, MOST_RATIO = 200.0, 2.0
LEAST_SAME = 0.5
Cells = dict[str, Any]


def config(folder: Path, eager: bool = False, rows: int = 256) -> Any:
    from tokenmill.config import CacheConfig, EngineConfig, KernelConfig, ModelConfig, SchedulerConfig

    return EngineConfig(
        ModelConfig(str(folder), max_model_tokens=CONTEXT), CacheConfig(prefix_caching=False), SchedulerConfig(rows),
        kernels=KernelConfig("cuda", eager),
    )


# ---------------------------------------------------------------- parts


def facts(asked: argparse.Namespace) -> Cells:
    import torch

    from tokenmill.kernels.bind import BindFacts, bind

    ops = bind(torch.device("cuda"), BindFacts(torch.float16))
    device = torch.cuda.get_device_name()
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "device": device, "backends": ops.backends}


def make(asked: argparse.Namespace) -> Cells:
    wanted = {"four": 4, "full": asked.layers}
    return {name: f"{write(asked.folder / name, layers):.2f} GiB" for name, layers in wanted.items()}


def write(folder: Path, layers: int) -> float:
    """A random checkpoint, a shard a layer; GiB written (0: it is there). config.json comes last: it marks the end."""
    import torch
    from safetensors.torch import save_file

    from tokenmill.models.spec import layer_linears, layer_plain, read_arch

    if (folder / "config.json").is_file():
        return 0.0
    folder.mkdir(parents=True, exist_ok=True)
    family, arch = read_arch({**SHAPE, "num_hidden_layers": layers})
    draw = torch.Generator("cuda").manual_seed(0)
    names, table = family.names, (arch.vocab_size, arch.hidden_size)
    shards: list[dict[str, tuple[int, ...]]] = [
        {f"{names.embedding}.weight": table, f"{names.head}.weight": table, f"{names.norm}.weight": table[1:]}
    ]
    for index in range(layers):
        linears = {f"{name}.weight": shape for name, shape in layer_linears(family, arch, index).items()}
        vectors = layer_plain(family, arch, index)
        shards.append({names.layer.format(index) + name: shape for name, shape in {**linears, **vectors}.items()})
    index_of, total = {}, 0
    for number, shapes in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=draw, device="cuda") * 0.02 if len(shape) == 2 else torch.ones(shape)
            tensors[name] = value.half().cpu().contiguous()
        save_file(tensors, folder / file, {"format": "pt"})
        index_of |= dict.fromkeys(tensors, file)
        total += sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": index_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": layers}))
    return total / 2**30


def warm(asked: argparse.Namespace) -> Cells:
    if "triton" not in os.environ.get("TOKENMILL_KERNELS", ""):
        return {"warmed": "nothing"}
    command = [sys.executable, str(ROOT / "scripts" / "gpu_warm.py"), str(asked.folder / "four"), "--context"]
    done = subprocess.run([*command, str(CONTEXT)], capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    print("\n".join(lines), done.stderr[-1000:], flush=True)
    return {"warmed": lines[-1] if lines else "said nothing", "good": done.returncode == 0}


def load(asked: argparse.Namespace) -> Cells:
    from tokenmill.runner.runner import make_runner

    started = time.perf_counter()
    runner = make_runner(config(asked.folder / "full"))
    told = runner.control("describe")
    cells = {"ready_s": round(time.perf_counter() - started, 1), **told["phases_s"]}
    cells |= {name: f"{told[f'{name}_bytes'] / 2**30:.2f} GiB" for name in ("weights", "kv", "workspace")}
    graphs = runner._steps.graphs
    runner.close()
    return {**cells, "tokens": told["tokens"], "graphs": len(graphs.keys) if graphs else 0}


def logits(asked: argparse.Namespace) -> Cells:
    """Error of ours and of transformers' fp16 eager model against its fp32 one, over 512 positions in chunks of 200."""
    import numpy as np
    import torch
    from tests.support.drive import Driver, chunk, init

    from tokenmill.models.twin import load_twin
    from tokenmill.runner.runner import make_runner
    from tokenmill.types import Want

    torch.backends.cuda.matmul.allow_tf32 = False
    ids = np.random.default_rng(0).integers(300, 92000, 512).tolist()
    runner = make_runner(config(asked.folder / "four", rows=8))
    driver, parts = Driver(runner), []
    for start in range(0, 512, 200):
        part = ids[start : start + 200]
        first = {"inits": [init(0, ids)], "new_blocks": driver.take(0, 600)} if not start else {}
        parts.append(driver.run(rows=[chunk(0, part, start, Want.LOGITS)], **first).extras[(0, 100)].logits)
    runner.close()
    with torch.inference_mode():
        twin, there = load_twin(asked.folder / "four").cuda(), torch.tensor([ids], device="cuda")
        truth = twin(there).logits[0].float().cpu()
        plain = twin.half()(there).logits[0].float().cpu()
    ours = torch.from_numpy(np.concatenate(parts)) - truth
    theirs = plain - truth
    norms = {"max": lambda error: error.abs().max(), "rms": lambda error: error.pow(2).mean().sqrt()}
    cells = {f"{name}_ratio": round(float(norm(ours) / norm(theirs)), 3) for name, norm in norms.items()}
    agree = float(((ours + truth).argmax(-1) == truth.argmax(-1)).float().mean())
    return {**cells, "top1_agree": round(agree, 4), "good": all(value <= MOST_RATIO for value in cells.values())}


def seated(runner: Any, rows: int, tokens: int) -> Any:
    """A driver with `rows` rows of a few tokens, each with blocks for `tokens`."""
    import numpy as np
    from tests.support.drive import Driver, chunk, init

    driver = Driver(runner)
    for slot in range(rows):
        prompt = np.random.default_rng(slot).integers(300, 92000, 16).tolist()
        driver.run(rows=[chunk(slot, prompt)], inits=[init(slot, prompt)], new_blocks=driver.take(slot, tokens))
    return driver


def graphs(asked: argparse.Namespace) -> Cells:
    import torch

    from tokenmill.runner.runner import make_runner

    replays: list[int] = []
    counted: dict[bool, int] = {}
    replay = torch.cuda.CUDAGraph.replay
    torch.cuda.CUDAGraph.replay = lambda graph: (replays.append(1), replay(graph))[1]  # type: ignore[method-assign]
    said = []
    for eager in (False, True):
        runner = make_runner(config(asked.folder / "four", eager, rows=8))
        driver = seated(runner, 8, 64)
        # The start rehearses.
        replays.clear()
        said.append([driver.run(decode=list(range(8))).tokens[:, 0] for _ in range(32)])
        counted[eager] = len(replays)
        runner.close()
    # A near tie of random weights may turn once, and the row's rest with it; a wrong graph agrees on nothing.
    same = statistics.mean(float((a == b).mean()) for a, b in zip(*said, strict=True))
    good = counted == {False: 32, True: 0} and same >= LEAST_SAME
    return {"replays": counted[False], "same": round(same, 3), "good": good}


def gap(asked: argparse.Namespace) -> Cells:
    """From the end of a step's last kernel to the start of the next step's first, one step queued ahead."""
    import torch
    from tests.support.drive import ints

    from tokenmill.runner.runner import make_runner

    runner = make_runner(config(asked.folder / "full", rows=64))
    begins, ends = mark(runner._steps)
    cells: Cells = {}
    for rows in (1, 64):
        driver = seated(runner, rows, 256)
        begins.clear()
        ends.clear()
        ahead, started = None, time.perf_counter()
        for _ in range(160):
            pending = runner.run(driver.plan(decode=list(range(rows))))
            if ahead is not None:
                ahead.result()
            ahead = pending
        ahead.result()
        torch.cuda.synchronize()
        step_us = (time.perf_counter() - started) / 160 * 1e6
        gaps = [end.elapsed_time(begin) * 1e3 for end, begin in zip(ends[20:-1], begins[21:], strict=True)]
        cells |= {f"p50_us_{rows}": round(statistics.median(gaps), 1), f"step_us_{rows}": round(step_us)}
        driver.run(released_slots=ints(list(range(rows))))
    runner.close()
    return {**cells, "good": all(cells[f"p50_us_{rows}"] <= MOST_GAP_US for rows in (1, 64))}


def mark(steps: Any) -> tuple[list[Any], list[Any]]:
    """Has every step record events where its work on the device begins and ends; both lists."""
    import torch

    begins: list[Any] = []
    ends: list[Any] = []
    forward, draw = steps.forward, steps.draw

    def event(kept: list[Any]) -> None:
        made = torch.cuda.Event(enable_timing=True)
        made.record()
        kept.append(made)

    def marked_forward(*arguments: Any) -> Any:
        event(begins)
        return forward(*arguments)

    def marked_draw(*arguments: Any) -> Any:
        done = draw(*arguments)
        event(ends)
        return done

    steps.forward, steps.draw = marked_forward, marked_draw
    return begins, ends


def static(asked: argparse.Namespace) -> Cells:
    return asyncio.run(workloads(asked, ["static:1x128x512", "static:16x128x512", "static:64x128x512"]))


def trace(asked: argparse.Namespace) -> Cells:
    return asyncio.run(workloads(asked, ["trace:1000"]))


async def workloads(asked: argparse.Namespace, names: list[str]) -> Cells:
    """Through the engine in its own process, as served. `good`: every request ended well."""
    from tokenmill.bench.engine import run_workload, warm_up
    from tokenmill.bench.workload import parse
    from tokenmill.engine.client import start_engine

    engine = await start_engine(RUNNER, config(asked.folder / "full"), own_process=True)
    cells: Cells = {}
    try:
        await warm_up(engine, SHAPE["vocab_size"])
        for workload in [w for name in names for w in parse(name, SHAPE["vocab_size"], CONTEXT)]:
            found = await run_workload(engine, workload)
            cells[found.case] = (
                f"{found.new_tokens_per_s:.0f} tok/s, {found.requests_per_s:.2f} req/s, {found.failed} failed, "
                f"TTFT p50 {found.ttft_ms.p50:.1f} ms, ITL p50 {found.itl_ms.p50:.2f} p99 {found.itl_ms.p99:.2f} ms"
            )
            cells["good"] = cells.get("good", True) and not found.failed
            print("so far", found.case, cells[found.case], flush=True)
    finally:
        await engine.close()
    return cells


def tests(asked: argparse.Namespace) -> Cells:
    """Line by line, so that what failed is there when the time is over; what passed is counted only."""
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "--tb=short", "-p", "no:cacheprovider", "tests/gpu"]
    passed, last = 0, "said nothing"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        for line in filter(str.strip, running.stdout or ()):
            passed, last = passed + (" PASSED" in line), line.strip()
            if " PASSED" not in line:
                print(last[:300], f"({passed} passed)", flush=True)
    return {"pytest": last, "good": running.returncode == 0}


PARTS: dict[str, Callable[[argparse.Namespace], Cells]] = {
    part.__name__: part for part in (facts, make, warm, load, logits, graphs, gap, static, trace, tests)
}

# ---------------------------------------------------------------- the table


def run_part(name: str, asked: argparse.Namespace, limit_s: float) -> Cells:
    """A part in its own process. What it prints last is its cells; anything else is shown as it comes."""
    command = [sys.executable, __file__, "--only", name, "--folder", str(asked.folder), "--layers", str(asked.layers)]
    started = time.perf_counter()
    # A group of its own: an engine's processes must not outlive a part that was stopped, with the GPU's memory.
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, process_group=0)
    try:
        out, _ = process.communicate(timeout=max(limit_s, 1.0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out = process.communicate()[0] + f'\n{json.dumps({"error": f"stopped after {limit_s:.0f} s", "good": False})}'
    lines = out.strip().splitlines()
    print("\n".join(f"  {name}: {line}" for line in lines[:-1]), flush=True)
    try:
        cells = dict(json.loads(lines[-1]))
    except (IndexError, ValueError):
        cells = {"error": f"ended with code {process.returncode}: {lines[-1:]}", "good": False}
    return {**cells, "seconds": round(time.perf_counter() - started, 1)}


def only(name: str, asked: argparse.Namespace) -> int:
    try:
        cells = PARTS[name](asked)
    except BaseException as error:  # noqa: BLE001 - whatever a part meets is its line in the table
        traceback.print_exc()
        cells = {"error": f"{type(error).__name__}: {error}"[:400], "good": False}
    print(json.dumps(cells, default=str), flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoints are or will be (16 GiB)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write all cells here after every part")
    parser.add_argument("--limit-s", type=float, default=540.0, help="for everything together")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        return only(asked.only, asked)
    ends, found = time.perf_counter() + asked.limit_s, {}
    for name in asked.parts:
        left = ends - time.perf_counter()
        found[name] = run_part(name, asked, left) if left > 5 else {"error": "no time was left", "good": False}
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1))
    print(f"{'part':8} {'good':5} cells")
    for name, cells in found.items():
        shown = ", ".join(f"{key} {value}" for key, value in cells.items() if key != "good")
        print(f"{name:8} {'yes' if cells.get('good', True) else 'NO':5} {shown}")
    return 0 if all(cells.get("good", True) for cells in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
