#!/usr/bin/env python3
"""Other packages' side of scripts/quant_table.py. Runs in a virtual environment that has them, without Tokenmill.

    PEERS/bin/python scripts/quant_peers.py make PACKAGE SOURCE FOLDER --ids calib.npy [--bits 4] [--samples 32]
    PEERS/bin/python scripts/quant_peers.py load FOLDER WEIGHTS.npz

`make` quantizes a Llama checkpoint, groups of 128, asymmetric, on given token ids. `load` writes every
weight of a folder, as the package dequantizes it that the folder's kind belongs to.
Versions these calls were written for: llmcompressor 0.14.0.1, auto-round 0.16.1, gptqmodel 7.4.0, autoawq 0.2.9.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import os
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
GROUP = 128
SEED = 42


@dataclass(frozen=True)
class Task:
    """Windows [samples, window] of ids, and where from and to."""

    source: str
    folder: str
    bits: int
    ids: np.ndarray

    def rows(self) -> list[dict[str, list[int]]]:
        return [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in self.ids]


def model_of(source: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)


def tokenizer_of(source: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source)


def llmcompressor(task: Task, awq: bool = True) -> None:
    """AWQ, both kinds of ratios, then GPTQ, the package's order (static act-order) and damping."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    torch.Tensor.pin_memory = lambda self, *a, **k: self  # asked for on CPU too, where there is none
    weights = QuantizationArgs(num_bits=task.bits, symmetric=False, strategy="group", group_size=GROUP)
    scheme = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    gptq = GPTQModifier(config_groups=scheme, ignore=["lm_head"])
    model, tokenizer = model_of(task.source), tokenizer_of(task.source)
    oneshot(
        model=model, tokenizer=tokenizer, dataset=Dataset.from_list(task.rows()),
        recipe=[AWQModifier(duo_scaling="both"), gptq] if awq else [gptq],
        num_calibration_samples=len(task.ids), max_seq_length=task.ids.shape[1], shuffle_calibration_samples=False,
    )  # fmt: skip
    model.save_pretrained(task.folder, save_compressed=True)
    tokenizer.save_pretrained(task.folder)


def auto_round(task: Task) -> None:
    """Its default of 200 steps. Ids go in as a tensor a batch."""
    from auto_round import AutoRound

    batches = [{"input_ids": torch.tensor(row)[None], "attention_mask": torch.ones(1, len(row))} for row in task.ids]
    run = AutoRound(
        model_of(task.source), tokenizer_of(task.source), bits=task.bits, group_size=GROUP, sym=False,
        dataset=batches, nsamples=len(task.ids), seqlen=task.ids.shape[1], batch_size=8, iters=200,
        device_map="cpu", enable_torch_compile=False, seed=SEED,
    )  # fmt: skip
    run.quantize_and_save(task.folder, format="auto_awq" if task.bits == 4 else "auto_gptq")
    # It may write to a folder of its own naming within.
    for made in Path(task.folder).glob("*/config.json"):
        shutil.copytree(made.parent, task.folder, dirs_exist_ok=True)


def gptqmodel(task: Task, symmetric: bool = False) -> None:
    """Its defaults (group-aware order) but for the grid."""
    without_torchvision()
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=task.bits, group_size=GROUP, sym=symmetric, format="gptq" if symmetric else "gptq_v2", device="cpu"
    )
    model = GPTQModel.load(task.source, config)
    model.quantize(task.rows(), batch_size=1)
    model.save(task.folder)


def autoawq(task: Task) -> None:
    """Files of the archived package. Its search keeps weights by `cpu()`, on a CPU the same memory: cloned here."""
    from awq import AutoAWQForCausalLM
    from awq.quantize import quantizer

    cpu = torch.Tensor.cpu
    torch.Tensor.cpu = lambda self, *a, **k: cpu(self).clone()
    assert quantizer is not None
    model = AutoAWQForCausalLM.from_pretrained(task.source, device_map="cpu", torch_dtype=torch.float32)
    told = {"zero_point": True, "q_group_size": GROUP, "w_bit": task.bits, "version": "GEMM"}
    model.quantize(
        tokenizer_of(task.source), quant_config=told, calib_data=[row.tolist() for row in task.ids],
        max_calib_samples=len(task.ids), max_calib_seq_len=task.ids.shape[1],
    )  # fmt: skip
    model.save_quantized(task.folder)


PACKAGES: dict[str, Callable[[Task], None]] = {
    "llmcompressor": llmcompressor,
    "llmcompressor-gptq": lambda task: llmcompressor(task, awq=False),
    "auto-round": auto_round,
    "gptqmodel": gptqmodel,
    "gptqmodel-v1": lambda task: gptqmodel(task, symmetric=True),
    "autoawq": autoawq,
}


def without_torchvision() -> None:
    """gptqmodel imports it for picture models without declaring it; where it is missing, empty modules stand in."""
    import transformers.models.llama.modeling_llama  # noqa: F401  (transformers looks for torchvision once, before)

    if importlib.machinery.PathFinder.find_spec("torchvision") is not None:
        return
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        module.InterpolationMode = object  # type: ignore[attr-defined]
        sys.modules[name] = module
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]


def opened_by_gptqmodel(folder: str) -> dict[str, np.ndarray]:
    without_torchvision()
    from gptqmodel import BACKEND, GPTQModel

    model = GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH, dtype=torch.float16).model
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "dequantize_weight")}
    return {name: module.dequantize_weight().T.float().numpy() for name, module in layers.items()}


def opened_by_autoawq(folder: str) -> dict[str, np.ndarray]:
    """Its own unpacking of what lies in the file."""
    from awq.utils.packing_utils import dequantize_gemm
    from safetensors.torch import load_file

    held = load_file(os.path.join(folder, "model.safetensors"))
    names = [name.removesuffix(".qweight") for name in held if name.endswith(".qweight")]
    parts = {name: [held[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")] for name in names}
    return {name: dequantize_gemm(*parts[name], 4, GROUP).T.float().numpy() for name in names}


def opened_by_transformers(folder: str) -> dict[str, np.ndarray]:
    """compressed-tensors unpacks at the first forward pass."""
    model = model_of(folder).eval()
    model(torch.tensor([[1, 2, 3]]))
    layers = {name: module for name, module in model.named_modules() if name.endswith("_proj")}
    return {name: module.weight.float().numpy() for name, module in layers.items()}


@torch.inference_mode()
def load(folder: str, out: str) -> None:
    """Every weight as the package dequantizes it that the folder's kind belongs to."""
    with open(os.path.join(folder, "config.json")) as file:
        kind = json.load(file)["quantization_config"]["quant_method"]
    ways = {"gptq": opened_by_gptqmodel, "awq": opened_by_autoawq, "compressed-tensors": opened_by_transformers}
    np.savez(out, **ways[kind](folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    make, opened = verbs.add_parser("make"), verbs.add_parser("load")
    make.add_argument("package", choices=PACKAGES)
    make.add_argument("source")
    make.add_argument("folder")
    opened.add_argument("folder")
    opened.add_argument("out")
    make.add_argument("--ids", required=True)
    make.add_argument("--samples", type=int, default=32)
    make.add_argument("--window", type=int, default=256)
    make.add_argument("--bits", type=int, default=4)
    args = parser.parse_args()
    if args.verb == "load":
        load(args.folder, args.out)
        return
    ids = np.load(args.ids)[: args.samples * args.window].reshape(-1, args.window)
    PACKAGES[args.package](Task(args.source, args.folder, args.bits, ids))


if __name__ == "__main__":
    main()
