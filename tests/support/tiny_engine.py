"""Factories over the one-layer model of tiny_runner.py, for `start_engine`. Imports torch, unlike engines.py."""

from __future__ import annotations

import torch

from tests.support.tiny_runner import TinyModel, tiny_capacity, tiny_runner
from tokenmill.config import EngineConfig
from tokenmill.engine.contract import Runner


def tiny(config: EngineConfig) -> Runner:
    """Blocks, rows and tokens of a step as the configuration says."""
    torch.set_num_threads(1)
    capacity = tiny_capacity(config.scheduler.max_rows, config.cache.num_blocks, config.scheduler.max_step_tokens)
    runner, _ = tiny_runner(TinyModel(torch.device("cpu")), capacity)
    return runner
