"""Baichuan-7B of the first generation: as Baichuan 2, with a plain head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from tokenmill.models import baichuan
from tokenmill.models.family import Twin, plain_head


def twin_tensors(tensors: dict[str, Tensor], c: dict[str, Any]) -> dict[str, Tensor]:
    """As Baichuan 2, with the head as it is."""
    return {**baichuan.twin_tensors(tensors, c), "lm_head.weight": tensors["lm_head.weight"]}


FAMILY = replace(
    baichuan.FAMILY,
    name="baichuan_v1",
    architectures=("BaiChuanForCausalLM",),
    tiny={
        **baichuan.TINY,
        "architectures": ["BaiChuanForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_baichuan.BaiChuanConfig",
            "AutoModelForCausalLM": "modeling_baichuan.BaiChuanForCausalLM",
        },
    },
    head=plain_head,
    twin=Twin(baichuan.twin_config, twin_tensors),
)
