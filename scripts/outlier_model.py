#!/usr/bin/env python3
"""The demo model as a Llama checkpoint with outliers put in: what quantization methods are compared on.

    PYTHONPATH=src:. python scripts/outlier_model.py FOLDER [--source FOLDER] [--seed 0] [--plain]

Large models grow a few channels that are far above the rest; a small one does not. `tests/support/outliers.py` puts
them in by scales that cancel, so the model computes what it did. Weights become fp32, and q, k, v and every other
linear stand under Llama's names, so that every package reads the folder. Also written: FOLDER/calib-S.npy for seeds
0, 1, 2 and FOLDER/held.npy, ids of the demo's own kinds of text. Held-out text is drawn from keys that were kept from
training; no method may look at it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from demo.data import stream
from demo.train import MIX
from safetensors.torch import save_file
from tests.support.outliers import inject
from tokenizers import Tokenizer

from tokenmill.models.family import DecoderArch
from tokenmill.models.spec import read_arch
from tokenmill.quant.block import Block, block_facts, read_block
from tokenmill.weights.source import open_folder

SOURCE = Path(__file__).parents[1] / "src" / "tokenmill" / "demo_model"
BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
SEEDS = (0, 1, 2)
CALIB_TOKENS, HELD_TOKENS = 128 * 512, 32 * 512
CALIB_SEED, HELD_SEED = 1000, 2000
ROPE_THETA = "rope_theta"
Tensors = dict[str, torch.Tensor]


def config(source: Path, arch: DecoderArch) -> dict[str, object]:
    """Llama's, of the same sizes. Dynamic rope scaling acts beyond max_position_embeddings only, and is left out."""
    told = json.loads((source / "config.json").read_text())
    kept = (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
        "rms_norm_eps", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings",
        ROPE_THETA, "hidden_act",
    )  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
        "head_dim": arch.attention.head_dim, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    } | {key: told[key] for key in kept}  # fmt: skip


def layer(block: Block, index: int) -> Tensors:
    """One block's tensors under Llama's names."""
    facts, prefix = block.facts, f"model.layers.{index}."
    joined = torch.cat([block.linears[name] for name in facts.names("qkv")])
    made = {f"self_attn.{which}_proj": joined[rows] for which, rows in zip("qkv", facts.qkv_rows, strict=True)}
    made["self_attn.o_proj"] = block.linears[facts.names("out")[0]]
    gate_up = torch.cat([block.linears[name] for name in facts.names("gate_up")])
    made["mlp.gate_proj"], made["mlp.up_proj"] = gate_up.chunk(2)
    made["mlp.down_proj"] = block.linears[facts.names("down")[0]]
    made["input_layernorm"] = block.vectors[f"{facts.attention_names.norm}.weight"]
    made["post_attention_layernorm"] = block.vectors[f"{facts.family.names.mlp.norm}.weight"]
    return {f"{prefix}{name}.weight": value.clone() for name, value in made.items()}


def tensors(source: Path) -> Tensors:
    family, arch = read_arch(source)
    opened, facts, names = open_folder(source), block_facts(family, arch), family.names
    made = {
        "model.embed_tokens.weight": opened.tensor(f"{names.embedding}.weight"),
        "model.norm.weight": opened.tensor(f"{names.norm}.weight"),
        "lm_head.weight": opened.weight(names.head).dequantize(torch.float32),
    }
    for index in range(arch.num_layers):
        made |= layer(read_block(facts, opened, index), index)
    return {name: value.float().contiguous().clone() for name, value in made.items()}


def text(source: Path, tokens: int, seed: int, held: bool) -> np.ndarray:
    """Ids of so many tokens, samples end to end."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    parts, total = [], 0
    for sample in itertools.chain(stream(tokenizer, seed, MIX, held)):
        parts.append(sample.ids)
        total += len(sample.ids)
        if total >= tokens:
            return np.concatenate(parts)[:tokens].astype(np.int64)
    raise AssertionError("the stream is endless")


def make(folder: Path, source: Path, seed: int, plain: bool = False) -> None:
    _, arch = read_arch(source)
    folder.mkdir(parents=True)
    told = config(source, arch)
    save_file(tensors(source), folder / "model.safetensors", {"format": "pt"})
    if not plain:
        inject(folder, told, seed)
    for name in BESIDE:
        shutil.copyfile(source / name, folder / name)
    for draw in SEEDS:
        np.save(folder / f"calib-{draw}.npy", text(source, CALIB_TOKENS, CALIB_SEED + draw, False))
    np.save(folder / "held.npy", text(source, HELD_TOKENS, HELD_SEED, True))
    (folder / "config.json").write_text(json.dumps(told, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without outliers")
    args = parser.parse_args()
    make(args.folder, args.source, args.seed, args.plain)


if __name__ == "__main__":
    main()
