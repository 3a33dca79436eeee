"""Random checkpoints in exact on-disk form, for tests and self-checks: config, weights, tokenizer, template.

Weights have std 0.15, so that attention is far from uniform and a wrong rope, head order or norm shows in the logits;
norms and biases are random too, because all-ones norms hide swapped norms.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from tokenmill.models.family import DecoderArch, Family
from tokenmill.models.spec import (
    end_tensors,
    families,
    find_family,
    layer_linears,
    layer_plain,
    multimodals,
    read_config,
)

CORPUS = (
    "The quick brown fox jumps over the lazy dog. Hello, how are you today? I am fine, thank you.",
    "你好，请讲一个关于狐狸和西瓜的小故事。从前，有一只狐狸，它很喜欢吃西瓜。",
    '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}} 12 + 30 = 42; def f(x): return x * 2',
    "生成300字的小故事 写一个300字的童话故事 🦊🍉",
)
SPECIALS = ("<unk>", "<s>", "</s>")
CHAT_SPECIALS = ("<|im_start|>", "<|im_end|>", "<|action_start|>", "<|action_end|>", "<|plugin|>", "<|interpreter|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Tiny:
    """What to make. `overrides` replace keys of the family's tiny config; None removes a key."""

    family: str = "llama"
    seed: int = 0
    std: float = 0.15
    dtype: torch.dtype = torch.float32
    overrides: dict[str, Any] = field(default_factory=dict)
    tokenizer: bool = True


def make_tiny(family: str, folder: str | Path, seed: int = 0, std: float = 0.15,
              overrides: dict[str, Any] | None = None) -> Path:
    """A random fp32 checkpoint of `family` in `folder` (made if needed), with a working tokenizer; the folder."""
    return write_tiny(folder, Tiny(family, seed, std, overrides=overrides or {}))


def write_tiny(folder: str | Path, tiny: Tiny) -> Path:
    """As `make_tiny`, with every choice open."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    joined = multimodals().get(tiny.family)
    own = joined.tiny if joined else families()[tiny.family].tiny
    config = {**own, "torch_dtype": str(tiny.dtype).removeprefix("torch."), **tiny.overrides}
    _write_json(path / "config.json", config)
    inner = read_config(config)
    _write_json(path / "generation_config.json", _generation(inner))
    family = find_family(inner)
    arch = family.arch(inner)
    tensors = random_tensors(family, arch, tiny.seed, tiny.std)
    if joined:
        tensors = {joined.prefix + key: value for key, value in tensors.items()}
        tensors |= random_tower(joined.tensors(config, arch.hidden_size), tiny.seed, tiny.std)
    tensors = {key: value.to(tiny.dtype) for key, value in tensors.items()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    if tiny.tokenizer:
        write_tokenizer(path, arch.vocab_size, joined.words if joined else (), joined.template if joined else "")
    if joined and joined.processor:
        _write_json(path / "preprocessor_config.json", joined.processor)
    return path


def random_tower(shapes: dict[str, tuple[int, ...]], seed: int, std: float) -> dict[str, Tensor]:
    """A vision tower's tensors, fp32: matrices around 0, norms and layer scales around 1, biases around 0."""
    draw = torch.Generator().manual_seed(seed + 1)
    tensors = {}
    for name, shape in shapes.items():
        scale = name.endswith(".weight") or name.rpartition(".")[2].startswith("ls")
        if len(shape) == 1 and scale:
            tensors[name] = 1.0 + torch.randn(shape, generator=draw) * 0.3
        else:
            tensors[name] = torch.randn(shape, generator=draw) * (0.3 if len(shape) == 1 else std)
    return tensors


def random_tensors(family: Family, arch: DecoderArch, seed: int, std: float) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its name on disk, fp32."""
    draw = torch.Generator().manual_seed(seed)
    names, table = family.names, (arch.vocab_size, arch.hidden_size)
    tensors = {f"{names.embedding}.weight": torch.randn(table, generator=draw) * std}
    for index in range(arch.num_layers):
        prefix = names.layer.format(index)
        for name, shape in layer_linears(family, arch, index).items():
            tensors[f"{prefix}{name}.weight"] = torch.randn(shape, generator=draw) * std
        for name, sizes in layer_plain(family, arch, index).items():
            tensors[prefix + name] = _random_plain(name, sizes, std, draw)
    tensors[f"{names.norm}.weight"] = 1.0 + torch.randn(arch.hidden_size, generator=draw) * 0.3
    for name, sizes in end_tensors(family, arch).items():
        tensors[name] = _random_plain(name, sizes, std, draw)
    return tensors


def _random_plain(name: str, sizes: tuple[int, ...], std: float, draw: torch.Generator) -> Tensor:
    """A norm around 1, a bias around 0, a matrix of the linears' size."""
    value = torch.randn(sizes, generator=draw)
    if len(sizes) > 1:
        return value * std
    return (0.0 if name.endswith("bias") else 1.0) + value * 0.3


def write_tokenizer(folder: Path, vocab_size: int, words: tuple[str, ...] = (), template: str = "") -> None:
    """A byte-level BPE tokenizer that round-trips any text, in `vocab_size` ids; ChatML's tokens and `words` last."""
    specials = (*CHAT_SPECIALS, *words)
    tokenizer = train_tokenizer(vocab_size - len(specials))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    _write_json(folder / "special_tokens_map.json", names)
    details = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": not template,
               "chat_template": template or TEMPLATE, "clean_up_tokenization_spaces": False,
               "model_max_length": 1_000_000}
    _write_json(folder / "tokenizer_config.json", {**names, **details})


def train_tokenizer(vocab_size: int) -> Tokenizer:
    """Trained on a few fixed lines; at most `vocab_size` pieces, at least the 256 bytes and three specials."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    split = pre_tokenizers.Split(Regex(r"\p{N}| ?[^\s\p{N}]+|\s+"), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=1, special_tokens=list(SPECIALS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _generation(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key)}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
