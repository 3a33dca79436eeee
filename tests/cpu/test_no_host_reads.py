"""What a GPU would wait for, shown without one: steps on torch's device without numbers.

A tensor there has shape and device and nothing else, so that reading a number of it fails, and so does an op whose
inputs lie on two devices.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.support.drive import chunk, init, ints

from tokenmill.distributed.group import NullGroup
from tokenmill.engine.contract import Capacity, KVGroup, StepPlan
from tokenmill.kernels.bind import BindFacts, bind
from tokenmill.kernels.cases.prepare_linear import WEIGHTS
from tokenmill.kv.contract import KVShape
from tokenmill.kv.layout import load_kind
from tokenmill.layers.linear import Linear, Loader, Part
from tokenmill.models.build import ModelBuild, build_model
from tokenmill.models.tiny import make_tiny
from tokenmill.runner.device import DeviceSteps
from tokenmill.runner.encode import HostImages
from tokenmill.runner.inputs import Limits, stage
from tokenmill.runner.slots import HostSlots
from tokenmill.types import Sampling, Want

NOWHERE = torch.device("meta")
PROMPT = [5, 17, 3, 44, 90, 2, 61, 8]
EVERYTHING = Sampling(0.9, 40, 0.9, 0.01, 1.2, 0.3, 0.3, ((5, 2.0),), (6,))
ROWS, TOKENS, CONTEXT, BLOCKS = 8, 64, 256, 64


class Nowhere:
    """A runner's device side on that device, with the host's side in front of it."""

    def __init__(self, folder, kv: str):
        model = build_model(folder, ModelBuild(NOWHERE, torch.float16, kv=kv, backends=()))
        spec = model.spec
        self.groups = tuple(KVGroup(g.name, len(g.layers), 16, 1024, BLOCKS, g.window_tokens) for g in spec.groups)
        capacity = Capacity(self.groups, ROWS, TOKENS, CONTEXT, spec.vocab_size, spec.rope)
        shape = KVShape(spec.num_kv_heads, spec.head_dim, 16)
        caches = tuple(load_kind(kv).alloc(BLOCKS, shape, torch.float16, NOWHERE) for _ in range(spec.num_layers))
        self.steps = DeviceSteps(model, capacity, caches, NOWHERE)
        self.host, self.images = HostSlots(ROWS, self.groups), HostImages(0, 0)
        self.limits = Limits(ROWS, TOKENS, CONTEXT, spec.vocab_size)

    def run(self, plan: StepPlan, masked: bool = False) -> None:
        """All that is done of a step before its results are copied to the host."""
        staged = stage(plan, self.host, self.limits, self.images)
        done = self.steps.forward(staged, torch.from_numpy(staged.buffer).to(NOWHERE))
        if done.logits_NV is not None:
            bits = torch.zeros(1, -(-self.limits.vocab_size // 8), dtype=torch.uint8, device=NOWHERE)
            mask = (torch.zeros(1, dtype=torch.int64, device=NOWHERE), bits) if masked else None
            assert self.steps._sample(staged, done, done.logits_NV, mask).device == NOWHERE

    def blocks(self) -> np.ndarray:
        """Four for each of three slots, in every group."""
        return ints([[g, s, i, 4 * s + i] for g in range(len(self.groups)) for s in range(3) for i in range(4)])


@pytest.mark.parametrize(("family", "kv"), [("llama", "fp8"), ("qwen", "int8"), ("gemma2", "int4")])
@torch.inference_mode()
def test_no_step_reads_a_number_or_mixes_devices(tmp_path, family, kv):
    there = Nowhere(make_tiny(family, tmp_path), kv)
    for sampling in (Sampling(temperature=0.0), EVERYTHING, Sampling(top_p=0.9)):
        more = {"top_logprobs": 2, "stop_ids": (7,), "min_tokens": 20}
        seats = [init(slot, PROMPT, sampling, seed=slot, **more) for slot in range(3)]
        rows = [chunk(0, PROMPT, 0, Want.TOKEN | Want.HIDDEN | Want.LOGITS), chunk(1, PROMPT), chunk(2, PROMPT[:1])]
        there.run(StepPlan(1, new_slots=seats, new_blocks=there.blocks(), rows=rows))
        there.run(StepPlan(2, ints([0, 1]), rows=[chunk(2, PROMPT[1:], 1)], block_copies=ints([[0, 1, 2]])))
        there.run(StepPlan(3, ints([0, 1, 2]), want_logprobs=ints([1])))
        there.run(StepPlan(4, ints([0, 1, 2])), masked=True)
        # As a graph has it, with rows of padding.
        there.steps.decode(torch.full((4,), ROWS, dtype=torch.int64, device=NOWHERE), CONTEXT)
        there.run(StepPlan(5, released_slots=ints([0, 1, 2])))


@pytest.mark.parametrize("name", ["dense", "int4-g128"])
def test_a_bias_lies_where_its_weight_does(name):
    ops = bind(torch.device("cpu"), BindFacts(torch.float32), ())
    loader = Loader(None, ops, NOWHERE, torch.float32, NullGroup())  # type: ignore[arg-type]
    linear = Linear((Part(WEIGHTS[name](64, 128), torch.zeros(64), 64),), "column", loader)
    assert linear(torch.empty(3, 128, device=NOWHERE)).device == NOWHERE
    assert linear.prepared.bias_N.device == NOWHERE
