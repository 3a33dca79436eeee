"""Which device a rank runs on, and what `config.resolve` must know of it."""

from __future__ import annotations

import os

import torch

from tokenmill import env
from tokenmill.config import DeviceFacts, EngineConfig
from tokenmill.errors import ConfigError
from tokenmill.runner.memory import free_bytes
from tokenmill.runner.plan import cpu_threads


def pick_device(config: EngineConfig, rank: int) -> torch.device:
    """The device of a rank. Raises ConfigError where it is asked for and not there."""
    wanted, there = config.kernels.device, torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError(
            "device is 'cuda' but torch sees no CUDA GPU: use --device cpu, or a torch build and driver for CUDA "
            "(tokenmill check env)"
        )
    if wanted == "cpu" or not there:
        return torch.device("cpu")
    parallel, count = config.parallel, torch.cuda.device_count()
    if parallel.devices and len(parallel.devices) < parallel.tp:
        raise ConfigError(f"tp is {parallel.tp} but only {len(parallel.devices)} devices are named: name one a rank")
    index = parallel.devices[rank] if parallel.devices else rank
    if index >= count:
        raise ConfigError(f"rank {rank} needs GPU {index} but there are {count}: use --tp {count} or less")
    return torch.device("cuda", index)


def device_facts(device: torch.device, linear_params: int) -> DeviceFacts:
    """`linear_params`: of the model that will run there, which decide how many threads are worth their meeting."""
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[1]
        return DeviceFacts("cuda", memory, 1, torch.cuda.get_device_capability(device) >= (8, 0))
    return DeviceFacts("cpu", free_bytes(device), threads_for(linear_params))


def threads_for(linear_params: int) -> int:
    """As OpenMP's variable says, else by the model's size and the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return env.num_threads() or cpu_threads(cores or 1, linear_params)
