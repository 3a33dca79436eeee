#!/usr/bin/env python3
"""Writes a random checkpoint of a 7B Llama's shape with a byte tokenizer, for measurements of any engine.

    python scripts/make_checkpoint.py FOLDER fp16|awq [--layers 32] [--device cuda]

`awq` is W4 with groups of 128 in AutoAWQ's files, embedding and head in fp16. Weights are of a size that keeps
activations finite; what the model says is noise, so it measures speed and nothing else. config.json comes last.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "float16",
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 92544, "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-5,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GROUP, SPREAD = 128, 0.02
# Codes are uniform in 0..15 around a zero point of 8: their deviation, by which scales make SPREAD of it.
DEVIATION = 4.61
SPECIAL = ("<unk>", "<s>", "</s>")
Tensors = dict[str, torch.Tensor]


def linears() -> dict[str, tuple[int, int]]:
    """Name within a layer -> (out, in)."""
    hidden, ffn, kv = 4096, 14336, 8 * 128
    sizes = {"q_proj": (hidden, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, hidden)}
    mlp = {"gate_proj": (ffn, hidden), "up_proj": (ffn, hidden), "down_proj": (hidden, ffn)}
    return {**{f"self_attn.{k}": v for k, v in sizes.items()}, **{f"mlp.{k}": v for k, v in mlp.items()}}


def dense(draw: torch.Generator, out: int, into: int) -> torch.Tensor:
    return (torch.randn(out, into, generator=draw, device=draw.device) * SPREAD).half().cpu()


def awq(name: str, draw: torch.Generator, out: int, into: int) -> Tensors:
    low, high = -(2**31), 2**31 - 1
    codes = torch.randint(low, high, (into, out // 8), generator=draw, device=draw.device, dtype=torch.int32)
    scales = (torch.rand(into // GROUP, out, generator=draw, device=draw.device) + 0.5) * (SPREAD / DEVIATION)
    # Nibbles of 8; as a signed number.
    zeros = torch.full((into // GROUP, out // 8), 0x88888888 - 2**32, dtype=torch.int32)
    return {f"{name}.qweight": codes.cpu(), f"{name}.qzeros": zeros, f"{name}.scales": scales.half().cpu()}


def layer(number: int, kind: str, draw: torch.Generator) -> Tensors:
    prefix, made = f"model.layers.{number}.", {}
    for name, (out, into) in linears().items():
        full = prefix + name
        made |= {f"{full}.weight": dense(draw, out, into)} if kind == "fp16" else awq(full, draw, out, into)
    norms = ("input_layernorm", "post_attention_layernorm")
    return made | {f"{prefix}{name}.weight": torch.ones(4096, dtype=torch.float16) for name in norms}


def ends(draw: torch.Generator) -> Tensors:
    size = 92544, 4096
    norm = torch.ones(4096, dtype=torch.float16)
    return {
        "model.embed_tokens.weight": dense(draw, *size), "lm_head.weight": dense(draw, *size), "model.norm.weight": norm
    }  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """Bytes, then names that no text has: every id decodes."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"<t{number}>" for number in range(len(words), 92544)]
    made = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    made.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 32768}
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=("fp16", "awq"))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    if (asked.folder / "config.json").is_file():
        print(f"{asked.folder} is there already")
        return 0
    asked.folder.mkdir(parents=True, exist_ok=True)
    draw, index, total = torch.Generator(asked.device).manual_seed(0), {}, 0
    for number in range(asked.layers + 1):
        tensors = layer(number, asked.kind, draw) if number < asked.layers else ends(draw)
        file = f"model-{number + 1:05d}-of-{asked.layers + 1:05d}.safetensors"
        save_file(tensors, asked.folder / file, {"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        total += sum(value.nbytes for value in tensors.values())
    listed = {"metadata": {"total_size": total}, "weight_map": index}
    (asked.folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    write_tokenizer(asked.folder)
    stops = {"bos_token_id": 1, "eos_token_id": 2}
    (asked.folder / "generation_config.json").write_text(json.dumps(stops))
    quantized = {"quantization_config": AWQ} if asked.kind == "awq" else {}
    config = {**SHAPE, "num_hidden_layers": asked.layers, **quantized}
    (asked.folder / "config.json").write_text(json.dumps(config, indent=1))
    print(f"{asked.folder}: {total / 2**30:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
