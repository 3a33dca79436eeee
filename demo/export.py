"""Make the model folder: `python -m demo.export TRAINING [--to FOLDER]`, by default `src/tokenmill/demo_model`.

Contract: TRAINING is what `demo.train` left (`trained.safetensors` or `latest.pt`, and `tokenizer.json`); where its
`report.json` is missing or of another step, the held-out items are asked first. FOLDER becomes exactly an InternLM2
folder in bf16 (tensor names, grouped `wqkv`, untied head, special tokens, chat template, generation config) with a
model card, the training report, the held-out items and `manifest.json` (size and SHA-256 of every file). It is written
beside its place and swapped in by renames: a failure leaves the old folder as it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor

from demo import heldout
from demo.card import NOTICE, card
from demo.checkpoint import REPORT, TOKENIZER, Trained, load_trained
from demo.model import Arch, DemoModel
from demo.report import finish
from demo.tokenizer import STOPS, tokenizer_config

DEFAULT = Path(__file__).parents[1] / "src" / "tokenmill" / "demo_model"
MAX_WEIGHT_BYTES = 16_000_000
MANIFEST = "manifest.json"


def disk_tensors(model: DemoModel) -> dict[str, Tensor]:
    """bf16 tensors under InternLM2's names: the embedding with its scale multiplied in, the head of its own."""
    state = {name: value.detach().float() for name, value in model.state_dict().items()}
    state.setdefault("output.weight", model.head.detach().float())
    embedding = "model.tok_embeddings.weight"
    state[embedding] = state[embedding] * model.arch.embed_scale
    return {name: value.bfloat16().clone().contiguous() for name, value in sorted(state.items())}


def config(arch: Arch) -> dict[str, Any]:
    """config.json as InternLM2-chat has it; `torch_dtype` and `rope_theta` are its spelling."""
    if arch.hidden != arch.heads * arch.head_dim:
        raise SystemExit(
            f"hidden {arch.hidden} is not heads x head_dim, {arch.heads} x {arch.head_dim}: InternLM2 needs it"
        )
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "attn_implementation": "eager",
        "auto_map": {
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
            "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
        },
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": arch.hidden,
        "initializer_range": 0.02,
        "intermediate_size": arch.ffn,
        "max_position_embeddings": arch.max_positions,
        "model_type": "internlm2",
        "num_attention_heads": arch.heads,
        "num_hidden_layers": arch.layers,
        "num_key_value_heads": arch.kv_heads,
        "pad_token_id": 2,
        "rms_norm_eps": arch.eps,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "rope_theta": int(arch.rope_theta),
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.0",
        "use_cache": True,
        "vocab_size": arch.vocab,
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    stops = [tokenizer.token_to_id(text) for text in STOPS[:2]]
    return {"bos_token_id": 1, "eos_token_id": stops, "pad_token_id": 2, "transformers_version": "4.41.0"}


def special_tokens_map(details: dict[str, Any]) -> dict[str, Any]:
    names = ("additional_special_tokens", "bos_token", "eos_token", "pad_token", "unk_token")
    return {name: details[name] for name in names}


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def folder_files(trained: Trained, tokenizer: Tokenizer, report: dict[str, Any]) -> dict[str, bytes]:
    """Every file of the folder but the manifest, by name."""
    weights = save(disk_tensors(trained.model), {"format": "pt"})
    if len(weights) > MAX_WEIGHT_BYTES:
        raise SystemExit(f"the weights have {len(weights)} bytes, above the limit of {MAX_WEIGHT_BYTES}: train fewer")
    details = tokenizer_config(tokenizer)
    return {
        "LICENSE": NOTICE.encode(),
        "README.md": card(report).encode(),
        "config.json": as_json(config(trained.model.arch)),
        "generation_config.json": as_json(generation_config(tokenizer)),
        "heldout.jsonl.gz": heldout.packed(heldout.items()),
        "model.safetensors": weights,
        "special_tokens_map.json": as_json(special_tokens_map(details)),
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "tokenizer_config.json": as_json(details),
        "training_report.json": as_json(report),
    }


def manifest(files: dict[str, bytes]) -> bytes:
    listed = {k: {"bytes": len(v), "sha256": hashlib.sha256(v).hexdigest()} for k, v in sorted(files.items())}
    return as_json({"tokenmill_manifest": 1, "made_by": "demo.export", "files": listed})


def write_folder(files: dict[str, bytes], folder: Path) -> None:
    """All files and their manifest, or the old folder as it was."""
    partial, old = (folder.with_name(f"{folder.name}.{end}") for end in ("partial", "old.partial"))
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, content in {**files, MANIFEST: manifest(files)}.items():
            (partial / name).write_bytes(content)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def report_of(trained: Trained, training: Path) -> dict[str, Any]:
    """The report beside the weights, or a new one where there is none or it is of another step or model."""
    path = training / REPORT
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    of = (found.get("architecture"), found.get("training", {}).get("step"))
    return found if of == (asdict(trained.model.arch), trained.facts["step"]) else finish(training, trained)


def export(training: Path, folder: Path) -> dict[str, Any]:
    """The report of what was exported."""
    trained = load_trained(training)
    report = report_of(trained, training)
    write_folder(folder_files(trained, Tokenizer.from_file(str(training / TOKENIZER)), report), folder)
    return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the demo model's folder from what training left.")
    parser.add_argument("training", type=Path)
    parser.add_argument("--to", type=Path, default=DEFAULT)
    args = parser.parse_args(argv)
    torch.set_grad_enabled(False)
    export(args.training, args.to)
    size = (args.to / "model.safetensors").stat().st_size
    print(f"{args.to}: {len(list(args.to.iterdir()))} files, weights {size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
