"""What a disk format is, and which one a config.json announces.

A format is one module of `weights/formats`; it never opens a file. `claims` sees the quantization_config alone; `read`
gets the tensors of one linear by suffix and checks that their shapes and dtypes agree; `write` is its inverse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from torch import Tensor

from tokenmill import find
from tokenmill.errors import FormatError
from tokenmill.log import safe
from tokenmill.weights.contract import Weight
from tokenmill.weights.scheme import Scheme, Suffixes

FORMATS = "tokenmill.weights.formats"
# Where the text model's part of a multimodal config.json lies.
NESTED = ("text_config", "llm_config", "language_config")


class Format(Protocol):
    """The five verbs of a format module."""

    def claims(self, config: Mapping[str, Any]) -> Scheme | None: ...

    def suffixes(self, scheme: Scheme) -> Suffixes: ...

    def read(self, tensors: Mapping[str, Tensor], scheme: Scheme) -> Weight: ...

    def write(self, weight: Weight, scheme: Scheme) -> dict[str, Tensor]: ...

    def manifest(self, scheme: Scheme) -> dict[str, Any]: ...


def load_format(name: str) -> Format:
    """The module of a format. ConfigError lists what there is."""
    return cast(Format, find.load(FORMATS, name))


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A config.json's quantization_config, at the top or in the text model's part."""
    for place in (config, *(config.get(key) for key in NESTED)):
        if isinstance(place, Mapping) and isinstance(place.get("quantization_config"), Mapping):
            return cast(Mapping[str, Any], place["quantization_config"])
    return None


def detect(config: Mapping[str, Any]) -> Scheme:
    """The scheme a config.json announces; plain where it announces none. FormatError where no format claims it."""
    announced = quantization_config(config)
    if announced is None:
        return Scheme("dense")
    names = find.names(FORMATS)
    for name in names:
        scheme = load_format(name).claims(announced)
        if scheme is not None:
            return scheme
    raise FormatError(
        f"quantization_config says {safe(announced.get('quant_method'), 80)}, which no format here claims; "
        f"known are {', '.join(n for n in names if n != 'dense')}"
    )
