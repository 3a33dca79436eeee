"""Hugging Face transformers: `generate` on batches in the order of arrival, padded to the left, as users run it.

A batch runs until its longest answer is done; a request's time is that of its own last token. Families that
transformers lacks run as the class that has the same arithmetic (models/twin.py).
"""

from __future__ import annotations

import time
from typing import Any

from tokenmill.bench.peers.contract import Settings
from tokenmill.bench.timeline import Timeline
from tokenmill.bench.workload import Item, Workload
from tokenmill.errors import ConfigError

MOST_ROWS = 64


class Steps:
    """The streamer's protocol: one call with the prompts, then one for every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


class Peer:
    streams = True

    def load(self) -> str:
        import torch
        import transformers

        self.torch: Any = torch
        return str(transformers.__version__)

    def start(self, settings: Settings) -> dict[str, float]:
        if settings.tp != 1 or settings.kv != "auto":
            raise ConfigError(
                f"transformers runs on one device with a plain KV cache here, not tp {settings.tp} and KV "
                f"{settings.kv!r}: leave --tp and --quant-policy out"
            )
        cuda = self.torch.cuda.is_available() and settings.device != "cpu"
        self.device, self.rows = "cuda" if cuda else "cpu", min(settings.max_rows, MOST_ROWS)
        model = plain_model(settings.model)
        dtype = settings.dtype if settings.dtype != "auto" else "float16" if cuda else "float32"
        self.model = model.to(device=self.device, dtype=getattr(self.torch, dtype)).eval()
        return {}

    def run(self, workload: Workload) -> list[Timeline]:
        sent, lines = time.perf_counter(), []
        for first in range(0, len(workload.items), self.rows):
            items = workload.items[first : first + self.rows]
            times = self._generate(items, workload)
            lines += [timeline(sent, item, times) for item in items]
        return lines

    def _generate(self, items: tuple[Item, ...], workload: Workload) -> list[float]:
        """When each step's tokens were there."""
        from transformers import GenerationConfig

        width, most = max(len(i.prompt_ids) for i in items), max(i.new_tokens for i in items)
        pads = [width - len(i.prompt_ids) for i in items]
        ids = self.torch.tensor([[0] * pad + list(i.prompt_ids) for pad, i in zip(pads, items, strict=True)])
        mask = self.torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
        drawn = {"do_sample": True, "temperature": workload.temperature, "top_p": workload.top_p, "top_k": 0}
        made: Any = GenerationConfig
        config = made(
            max_new_tokens=most, eos_token_id=None, pad_token_id=0, **(drawn if workload.temperature else {})
        )
        # What a checkpoint says of stop tokens and sampling would be laid under the config.
        self.model.generation_config = made()
        steps = Steps()
        with self.torch.inference_mode():
            self.model.generate(
                ids.to(self.device), attention_mask=mask.to(self.device), generation_config=config, streamer=steps
            )
        if len(steps.times) != most + 1:
            raise RuntimeError(f"transformers made {len(steps.times) - 1} of {most} steps")
        return steps.times[1:]

    def close(self) -> None:
        del self.model


def plain_model(folder: str) -> Any:
    """As transformers loads it; else its equal in transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tokenmill.models.twin import load_twin

    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError):
        return load_twin(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def timeline(sent: float, item: Item, times: list[float]) -> Timeline:
    own = times[: item.new_tokens]
    return Timeline(len(item.prompt_ids), sent, [(when, 1) for when in own], own[-1])
