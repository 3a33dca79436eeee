"""Storing K and V of a step: the cache kind knows how."""

from __future__ import annotations

from torch import Tensor

from tokenmill.kv.contract import KVPages


def kv_write(pages: KVPages, k_TGK: Tensor, v_TGK: Tensor, writes_T: Tensor) -> None:
    """Each token to flat place writes_T (block * S + offset), -1 to nowhere."""
    pages.kind.write(pages, k_TGK, v_TGK, writes_T)
