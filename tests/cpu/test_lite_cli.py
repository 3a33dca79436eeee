"""The `lite` verbs as people type them: LMDeploy's command lines run unchanged, errors are one line."""

import json
import shlex

import pytest
import torch

from tokenmill.cli import lite
from tokenmill.cli.main import main
from tokenmill.models.tiny import make_tiny
from tokenmill.weights.export import verify


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny("internlm2", tmp_path_factory.mktemp("m") / "m")


SMALL = ["--calib-samples", "2", "--calib-seqlen", "64"]
TUTORIAL = ["auto_awq", "--calib-dataset", "ptb", *SMALL]
LINES = {
    "tutorial": ([*TUTORIAL, "--w-bits", "4", "--w-group-size", "128"], "awq"),
    "tutorial 2": ([*TUTORIAL, "--batch-size", "1", "--search-scale", "False"], "awq"),
    "underscores": (["auto_awq", "--calib_samples", "2", "--calib_seqlen", "64", "--w_group_size=64"], "awq"),
    "no data": (["auto_awq", "--calib-samples", "0", "--calib-seqlen", "64"], "awq"),
    "gptq": (["auto_gptq", *SMALL], "gptq"),
    "converted": (["auto_gptq", *SMALL, "--to", "compressed-tensors", "--w-bits", "8"], "compressed-tensors"),
    "smooth_quant": (["smooth_quant", *SMALL], "smooth_quant"),
    "smooth_quant fp8": (["smooth_quant", *SMALL, "--quant-dtype", "fp8"], "smooth_quant"),
    "blocked_fp8": (["blocked_fp8", "--block-size", "32", "--calib-seqlen", "64"], "fp8"),
}


@pytest.mark.parametrize("case", LINES)
def test_command_lines(tmp_path, model, case, capsys):
    (verb, *options), method = LINES[case]
    assert main(["lite", verb, str(model), *options, "--work-dir", str(tmp_path / "out")]) == 0
    verify(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == method
    out, err = capsys.readouterr()
    assert '"held_out"' in out and "2/2 blocks" in err and "next: tokenmill chat" in out
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_the_tutorial_line_as_typed(tmp_path, monkeypatch):
    """What it asks for; the same line in small runs above."""
    seen = []
    monkeypatch.setattr(lite, "quantize", lambda args, recipe: seen.append((args, recipe)) or 0)
    line = (
        "lite auto_awq DIR --calib-dataset 'ptb' --calib-samples 128 --calib-seqlen 2048 --w-bits 4 "
        f"--w-group-size 128 --batch-size 1 --search-scale False --work-dir {tmp_path / 'out'}"
    )
    assert main(shlex.split(line)) == 0
    args, recipe = seen[0]
    assert (args.model, args.calib_dataset, args.calib_samples, args.calib_seqlen) == ("DIR", "ptb", 128, 2048)
    assert (recipe.method, recipe.bits, recipe.group, args.batch_size) == ("awq+gptq", 4, 128, 1)
    assert args.work_dir == tmp_path / "out" and args.search_scale is False


def test_errors_are_one_line(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, word in (
        (["auto_awq", "--w-bits", "5"], "--w-bits 5 is not served"),
        (["auto_awq", *SMALL, "--w-group-size", "96"], "--w-group-size"),
        (["auto_awq", "--calib-dataset", "nothing"], "no known set"),
        (["smooth_quant", "--quant-dtype", "float8_e5m2"], "float8_e5m2"),
        (["auto_gptq", *SMALL, "--device", "cuda"], "no CUDA device"),
        (["auto_gptq", *SMALL, "--to", "gguf"], "gguf"),
    ):
        verb, *rest = options
        assert main(["lite", verb, str(model), *rest, "--work-dir", str(tmp_path / "out")]) > 0
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(err) == 1 and word in err[0], err
    assert not (tmp_path / "out").exists()
