"""A checkpoint as a transformers model in fp32 on the CPU: the independent reference of parity checks.

Weights are read by name and dequantized, so that a quantized folder is compared with the plain model it stands for. No
code of the checkpoint's author runs: families that transformers lacks say in `FAMILY.twin` what it has instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tokenmill.config import ModelConfig
from tokenmill.errors import ConfigError, FormatError
from tokenmill.layers.score import Score
from tokenmill.models.family import DecoderArch, Family
from tokenmill.models.spec import (
    end_tensors,
    find_multimodal,
    layer_linears,
    layer_plain,
    read_arch,
    read_config,
    read_whole,
)
from tokenmill.weights.contract import Source
from tokenmill.weights.prefix import PrefixSource
from tokenmill.weights.source import open_source

# Rotations that transformers' Llama does not compute.
UNKNOWN_ROPES = ("qwen", "none")


def load_twin(folder: str | Path, config: ModelConfig = ModelConfig()) -> Any:
    """transformers' model with this folder's weights, ready to run. Raises ConfigError where there is none."""
    raw, tensors = language_twin(folder, config)
    family, _ = read_arch(folder, config)
    return build_twin(raw, tensors) if family.score is None else build_score_twin(raw, tensors, family.score)


def language_twin(folder: str | Path, config: ModelConfig) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and tensors of the causal model that transformers has for a folder, or for its language part."""
    family, arch = read_arch(folder, config)
    if arch.rope.kind in UNKNOWN_ROPES or arch.logn_tokens is not None:
        raise ConfigError(
            f"transformers has no class for {family.name} with rope {arch.rope.kind!r}"
            f"{' and LogN attention' if arch.logn_tokens is not None else ''}: nothing to compare with"
        )
    raw = read_config(folder, config)
    joined, source = find_multimodal(read_whole(folder, config)), open_source(folder)
    tensors = plain_tensors(family, arch, PrefixSource(source, joined.prefix) if joined else source)
    if family.twin is not None:
        tensors, raw = family.twin.tensors(tensors, raw), family.twin.config(raw)
    return raw, tensors


def load_whole_twin(folder: str | Path, context_id: int, config: ModelConfig = ModelConfig()) -> Any:
    """transformers' model of a folder with a vision tower, tower and all; None for one that takes text only."""
    raw = read_whole(folder, config)
    joined = find_multimodal(raw)
    if joined is None:
        return None
    inner, tensors = language_twin(folder, config)
    source, shapes = open_source(folder), joined.tensors(raw, inner["hidden_size"])
    return joined.twin(raw, (inner, tensors), {name: source.tensor(name).float() for name in shapes}, context_id)


def build_twin(raw: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """A transformers causal model of a config and its tensors by name; every name must be met."""
    config = twin_config(raw)
    from transformers import AutoModelForCausalLM

    return read_twin(AutoModelForCausalLM, config, tensors)


def twin_config(raw: dict[str, Any]) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("comparing with transformers needs it: pip install 'tokenmill[lite]'") from error
    keys = {key: value for key, value in raw.items() if key not in ("model_type", "quantization_config", "auto_map")}
    keys |= {key: _rope_of_text(raw[key]) for key in ("rope_scaling", "rope_parameters") if raw.get(key)}
    kind = raw["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        raise ConfigError(f"transformers {transformers.__version__} knows no {kind}: install a release that does")
    return transformers.AutoConfig.for_model(kind, **{**keys, "attn_implementation": "eager"})


def _rope_of_text(rope: dict[str, Any]) -> dict[str, Any]:
    """Without the sections of pictures' rows and columns, which a class for text alone does not know."""
    if "mrope_section" not in rope:
        return rope
    plain = {key: value for key, value in rope.items() if key not in ("mrope_section", "type", "rope_type")}
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    return {**plain, "rope_type": "default" if kind == "mrope" else kind}


def build_score_twin(raw: dict[str, Any], tensors: dict[str, Tensor], score: Score) -> ScoreTwin:
    """transformers' trunk, and torch's own linears behind it."""
    config = twin_config(raw)
    from transformers import AutoModel

    ends = [name for name in tensors if name.startswith(score.linears)]
    trunk = read_twin(AutoModel, config, {name: value for name, value in tensors.items() if name not in ends})
    layers: list[torch.nn.Module] = []
    for name in score.linears:
        weight = tensors[f"{name}.weight"]
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], score.bias)
        linear.load_state_dict({key: tensors[f"{name}.{key}"] for key, _ in linear.named_parameters()})
        layers += [linear, torch.nn.ReLU()]
    return ScoreTwin(trunk, torch.nn.Sequential(*layers[:-1]))


@dataclass(frozen=True, slots=True)
class ScoreTwin:
    """A reward model as its authors put it together: `twin(ids_1T).logits` [1, 1, 1] is the last token's score."""

    model: Any
    score: torch.nn.Module

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def __call__(self, ids_1T: Tensor) -> Any:
        return SimpleNamespace(logits=self.score(self.model(ids_1T).last_hidden_state)[:, -1:])


def read_twin(auto: Any, config: Any, tensors: dict[str, Tensor]) -> Any:
    """A model of one of transformers' auto classes."""
    with torch.device("meta"):
        reader: Any = type(auto.from_config(config))
    # As transformers reads a folder: it knows the names on disk where its modules have others.
    with quiet():
        model, info = reader.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
        )
    absent, unknown = list(info["missing_keys"]), list(info["unexpected_keys"])
    if absent or unknown:
        raise FormatError(f"transformers misses {absent[:4]} and does not know {unknown[:4]} in this checkpoint")
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar of transformers: a check prints its own table."""
    from transformers.utils import logging as theirs

    # transformers' typing differs between releases.
    logging: Any = theirs
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def plain_tensors(family: Family, arch: DecoderArch, source: Source) -> dict[str, Tensor]:
    """Every tensor the model uses by its name on disk, fp32, quantized linears dequantized."""
    names = family.names
    tensors = {name: source.tensor(name) for name in (f"{names.embedding}.weight", f"{names.norm}.weight")}
    for name in end_tensors(family, arch):
        # A quantized folder may hold its head quantized as well.
        tensors[name] = source.tensor(name) if family.score else source.weight(names.head).dequantize()
    for index in range(arch.num_layers):
        prefix = names.layer.format(index)
        for name in layer_linears(family, arch, index):
            tensors[f"{prefix}{name}.weight"] = source.weight(prefix + name).dequantize()
        for name in layer_plain(family, arch, index):
            tensors[prefix + name] = source.tensor(prefix + name)
    return {name: value.float() for name, value in tensors.items()}
