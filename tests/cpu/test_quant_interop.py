"""Folders that Tokenmill writes, opened by other packages through transformers: the same weights to the last bit.

Wider, with the packages that make such folders, in an environment of their own: scripts/quant_interop.py.
"""

import json

import pytest
import torch

from tokenmill.models.tiny import make_tiny
from tokenmill.quant.job import Job
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.run import quantize_folder
from tokenmill.quant.text import Tokens
from tokenmill.weights.source import open_source


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_compressed_tensors_in_transformers(tmp_path, bits, symmetric):
    """Asymmetric ones with `dequantize`: without, transformers 5.23 asks for zeros unpacked, of llm-compressor's
    folders just as of ours."""
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    pytest.importorskip("compressed_tensors", reason="no compressed-tensors")
    source = make_tiny("llama", tmp_path / "m")
    recipe = Recipe("rtn", to="compressed-tensors", bits=bits, group=32, symmetric=symmetric)
    quantize_folder(Job(source, tmp_path / "q", recipe, Tokens((), (), "none")))
    told = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert told["config_groups"]["group_0"]["weights"]["symmetric"] is symmetric
    how = transformers.CompressedTensorsConfig(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "q", dtype=torch.float32, quantization_config=how
    )
    ours = open_source(tmp_path / "q")
    linears = {name: m.weight for name, m in theirs.named_modules() if name.endswith("_proj")}
    assert len(linears) == 14
    for name, weight in linears.items():
        # They multiply in the scales' fp16, rounding once: equal codes, zeros and scales give equal bits.
        assert torch.equal(ours.weight(name).dequantize(torch.float16).float(), weight.float()), name
