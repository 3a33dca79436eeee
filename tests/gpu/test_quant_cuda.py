"""Quantization on a CUDA device ends as near to the source as it does on the CPU."""

import pytest
import torch

from tokenmill.models.tiny import make_tiny
from tokenmill.quant.job import Job
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.run import quantize_folder
from tokenmill.quant.text import Tokens
from tokenmill.weights.export import verify


@pytest.mark.parametrize("method", ["rtn", "awq", "gptq", "awq_gptq", "smoothquant", "fp8"])
@pytest.mark.parametrize("family", ["llama", "internlm2"])
def test_cuda_agrees_with_the_cpu(tmp_path, method, family):
    source = make_tiny(family, tmp_path / "m")
    drawn = torch.randint(3, 60, (8, 64), generator=torch.Generator().manual_seed(0)).tolist()
    windows = tuple(tuple(row) for row in drawn)
    kl = {}
    for device in ("cpu", "cuda"):
        recipe = Recipe(method, group=64, ratios=5, block=(32, 64))
        job = Job(source, tmp_path / device, recipe, Tokens(windows[:6], windows[6:], "x"), torch.device(device))
        kl[device] = quantize_folder(job).quality.kl
        verify(tmp_path / device)
    assert kl["cuda"] == pytest.approx(kl["cpu"], rel=0.15)
