"""`lite calibrate` and `lite kv_qparams` against transformers' own activations and the documented formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from tokenmill.cli.main import main
from tokenmill.models.tiny import make_tiny
from tokenmill.quant.text import Choice, draw

IDS = np.random.default_rng(3).integers(3, 500, 400)
SIZES = ["--calib-samples", "3", "--calib-seqlen", "40"]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("calibrate")
    np.save(base / "ids.npy", IDS)
    model = make_tiny("llama", base / "m", std=0.1)
    assert main(["lite", "calibrate", str(model), "--calib-dataset", str(base / "ids.npy"), *SIZES,
                 "--work-dir", str(base / "work")]) == 0  # fmt: skip
    return model, base / "work"


@pytest.fixture(scope="module")
def seen(calibrated: tuple[Path, Path]) -> dict[str, dict[str, torch.Tensor]]:
    """Inputs and outputs of every linear, keys and values of every layer, by hooks on transformers' model."""
    model = AutoModelForCausalLM.from_pretrained(calibrated[0], dtype=torch.float32)
    found: dict[str, dict[str, list[torch.Tensor]]] = {"inputs": {}, "outputs": {}, "key": {}, "value": {}}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            def keep(_: object, x: tuple[torch.Tensor], y: torch.Tensor, name: str = name) -> None:
                found["inputs"].setdefault(name, []).append(x[0][0])
                found["outputs"].setdefault(name, []).append(y[0])

            module.register_forward_hook(keep)
    windows = draw(IDS, Choice(samples=3, seqlen=40), "ids.npy").samples
    with torch.no_grad():
        for window in windows:
            cache = DynamicCache()
            model(torch.tensor([window]), past_key_values=cache, use_cache=True)
            for i, layer in enumerate(cache.layers):
                found["key"].setdefault(f"model.layers.{i}", []).append(layer.keys[0].transpose(0, 1))
                found["value"].setdefault(f"model.layers.{i}", []).append(layer.values[0].transpose(0, 1))
    return {what: {name: torch.cat(parts) for name, parts in by.items()} for what, by in found.items()}


KINDS = {
    "max": lambda x: x.amax(0), "min": lambda x: x.amin(0), "mean": lambda x: x.mean(0),
    "absmax": lambda x: x.abs().amax(0), "absmean": lambda x: x.abs().mean(0),
}  # fmt: skip


@pytest.mark.parametrize("what", ["inputs", "outputs", "key", "value"])
def test_statistics_are_those_of_transformers(
    calibrated: tuple[Path, Path], seen: dict[str, dict[str, torch.Tensor]], what: str
) -> None:
    """As LMDeploy's readers open them: a dict of dicts of tensors."""
    made = torch.load(calibrated[1] / f"{what}_stats.pth", weights_only=True)
    assert set(made) == set(KINDS if what in ("inputs", "outputs") else ("max", "min", "absmax"))
    for kind, by_name in made.items():
        assert set(by_name) == set(seen[what])
        for name, value in by_name.items():
            torch.testing.assert_close(value, KINDS[kind](seen[what][name]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_kv_scales(
    calibrated: tuple[Path, Path], seen: dict[str, dict[str, torch.Tensor]], tmp_path: Path, symmetric: bool, ranks: int
) -> None:
    flags = ["--kv-sym"] if symmetric else []
    assert main(["lite", "kv_qparams", str(calibrated[1]), str(tmp_path), "--num-tp", str(ranks), *flags]) == 0
    assert len(list(tmp_path.iterdir())) == 2 * ranks
    for layer in range(2):
        for rank in range(ranks):
            wanted: list[float] = []
            for what in ("key", "value"):
                x = seen[what][f"model.layers.{layer}"].chunk(ranks, 1)[rank]
                low, high = float(x.min()), float(x.max())
                wanted += [float(x.abs().max()) / 127] if symmetric else [(high - low) / 255, (high + low) / 2]
            raw = (tmp_path / f"layers.{layer}.past_kv_scale.{rank}.weight").read_bytes()
            assert np.frombuffer(raw, "<f4").tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_what_is_refused_is_refused_in_one_line(
    calibrated: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, work = calibrated
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "key_stats.pth").write_bytes(b"a pickle")
    for line, word in (
        (["kv_qparams", str(tmp_path / "old"), str(tmp_path)], "pickles, which are not opened"),
        (["kv_qparams", str(model), str(tmp_path)], "no statistics"),
        (["kv_qparams", str(work), str(tmp_path / "none")], "no folder"),
        (["kv_qparams", str(work), str(tmp_path), "--num-tp", "3"], "--num-tp 3"),
        (["kv_qparams", str(work), str(tmp_path), "--kv-bits", "4"], "--kv-bits 4"),
        (["calibrate", str(model), "--calib-samples", "0", "--work-dir", str(tmp_path / "w")], "--calib-samples"),
        (["calibrate", str(model), *SIZES, "--work-dir", str(work)], "already exists"),
    ):
        assert main(["lite", *line]) > 0
        err = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error:")]
        assert len(err) == 1 and word in err[0], err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old"]
