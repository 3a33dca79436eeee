"""From a checkpoint folder to a model on its device: names, shapes and formats are checked on the way.

Streaming: tensors are read one linear at a time and go to the device at once, so that beside the model itself no more
than one fused linear is held.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from tokenmill.config import ModelConfig
from tokenmill.distributed.contract import Group
from tokenmill.distributed.group import NullGroup
from tokenmill.kernels.bind import BindFacts, bind
from tokenmill.layers.linear import Loader
from tokenmill.models.decoder import Decoder
from tokenmill.models.spec import find_multimodal, read_arch, read_spec, read_whole
from tokenmill.weights.prefix import PrefixSource
from tokenmill.weights.source import open_source


@dataclass(frozen=True, slots=True)
class ModelBuild:
    """How a model is built. `config` carries the user's overrides; its dtype is not read, `dtype` is.

    `backends` replaces the device's own order of kernel backends; () is the reference alone. `roomy`: quantized weights
    may be held unpacked, where that is faster.
    """

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    group: Group = field(default_factory=NullGroup)
    config: ModelConfig = ModelConfig()
    kv: str = "auto"
    backends: tuple[str, ...] | None = None
    roomy: bool = True


def build_model(folder: str | Path, build: ModelBuild = ModelBuild()) -> Decoder:
    """The model in `folder`. Raises FormatError (files) and ConfigError (what is not served)."""
    spec = read_spec(folder, build.config)
    family, arch = read_arch(folder, build.config)
    facts = BindFacts(build.dtype, "latent" if spec.latent else build.kv, build.roomy)
    ops = bind(build.device, facts, build.backends)
    files = open_source(folder)
    whole = Loader(files, ops, build.device, build.dtype, build.group)
    joined = find_multimodal(raw := read_whole(folder, build.config))
    if joined is None:
        return Decoder(spec, family, arch, replace(whole, source=family.source(files)))
    language = family.source(PrefixSource(files, joined.prefix))
    model = Decoder(spec, family, arch, replace(whole, source=language))
    if not build.config.language_only:
        model.vision = joined.build(whole, raw, arch.hidden_size)
    return model
