"""A quantized copy of a model that is made once and reused: what `demo` and `lite advise` serve beside the source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill.cli.progress import progress
from tokenmill.errors import ConfigError

if TYPE_CHECKING:
    from tokenmill.quant.recipe import Recipe
    from tokenmill.quant.text import Choice


def is_copy(folder: Path, source: Path, recipe: Recipe, choice: Choice) -> bool:
    """Whether the folder was made of this source, by this recipe, from a text of this name and size."""
    from tokenmill.quant.report import REPORT, source_facts
    from tokenmill.weights.checkpoint import read_json

    if not (folder / REPORT).is_file():
        return False
    told = read_json(folder / REPORT)
    text = told.get("calibration", {})
    asked = (Path(choice.dataset).name, choice.samples, choice.seqlen, choice.seed)
    return (
        told.get("source") == source_facts(source)
        and told.get("recipe") == json.loads(json.dumps(recipe.facts()))
        and (text.get("origin"), text.get("samples"), text.get("window_tokens"), text.get("seed")) == asked
    )


def quantized_copy(source: Path, folder: Path, recipe: Recipe, choice: Choice, fresh: bool = False) -> Path:
    """`folder`, made where it is not there. ConfigError where it holds something else and is not to be replaced."""
    import torch

    from tokenmill.cli.lite import device_of
    from tokenmill.quant.job import Job
    from tokenmill.quant.report import REPORT
    from tokenmill.quant.run import quantize_folder
    from tokenmill.quant.text import calibration
    from tokenmill.tokenize.loader import load_tokenizer

    if not fresh and is_copy(folder, source, recipe, choice):
        return folder
    if folder.exists() and not (folder / REPORT).is_file():
        raise ConfigError(f"{folder} exists and is no quantized model: name another --work-dir")
    if folder.exists() and not fresh:
        raise ConfigError(f"{folder} was made of another model or recipe: give --fresh to replace it")
    tokenizer = load_tokenizer(source)
    tokens = calibration(choice, lambda text: tokenizer.encode(text, add_special_tokens=False))
    shutil.rmtree(folder, ignore_errors=True)
    job = Job(source, folder, recipe, tokens, torch.device(device_of("auto")))
    with progress(f"{recipe.method}, {recipe.bits} bits", "blocks") as show:
        quantize_folder(job, lambda done, total, error: show(done, total, f"error {error:.3g}"))
    return folder
