"""lm-eval through our server scores as it does with transformers, on one checkpoint and tasks from a local file."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.server_process import ROOT, server_process
from tokenizers import Tokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'lm_eval[api]==0.4.13')")
WORDS = ("the", "fox", "sat", "under", "a", "tree", "and", "looked", "at", "river", "stone", "bird", "moon")
TASK = """task: mill_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
metadata: {{version: 1}}
"""
KINDS = {
    "multiple_choice": "doc_to_choice: choices\ndoc_to_target: gold\n"
    "metric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "loglikelihood": 'doc_to_target: " {{choices[0]}}"\nmetric_list: [{metric: perplexity}, {metric: acc}]\n',
    "generate_until": 'doc_to_target: "{{choices[0]}}"\nmetric_list: [{metric: exact_match}]\n'
    "generation_kwargs: {until: [\"\\n\"], max_gen_toks: 12, do_sample: false, temperature: 0}\n",
}


def make_tasks(folder: Path) -> None:
    rng = random.Random(1)
    rows = [
        {"question": " ".join(rng.choices(WORDS, k=rng.randint(3, 9))), "gold": rng.randrange(4),
         "choices": [" ".join(rng.choices(WORDS, k=rng.randint(1, 4))) for _ in range(4)]}
        for _ in range(12)
    ]  # fmt: skip
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    for kind, rest in KINDS.items():
        (folder / f"{kind}.yaml").write_text(TASK.format(kind=kind, data=data) + rest)


def evaluate(folder: Path, name: str, model: str, arguments: str) -> dict[int, Any]:
    """What lm-eval heard of every document, by task and document."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    command = [
        sys.executable, "-m", "lm_eval", "--model", model, "--model_args", arguments, "--tasks",
        ",".join(f"mill_{kind}" for kind in KINDS), "--include_path", str(folder), "--batch_size", "4",
        "--log_samples", "--output_path", str(folder / name), "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[Any, Any] = {}
    for kind in KINDS:
        [file] = (folder / name).rglob(f"samples_mill_{kind}_*.jsonl")
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found[kind, row["doc_id"]] = row["filtered_resps"]
    return found


def test_scores_are_those_of_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    subprocess.run(
        [sys.executable, "-m", "tokenmill", "make-tiny", "llama", str(folder)],
        check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, timeout=600,
    )
    # As chat models have it: both sides then end an answer at a turn's end.
    settings = folder / "generation_config.json"
    ends = [Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(text) for text in ("</s>", "<|im_end|>")]
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": ends}))
    make_tasks(tmp_path)
    theirs = evaluate(tmp_path, "hf", "hf", f"pretrained={folder},dtype=float32")
    with server_process([sys.executable, "-m", "tokenmill", "serve", "api_server", str(folder)],
                        "--model-name", "tiny") as server:  # fmt: skip
        arguments = f"model=tiny,base_url={server.url}/v1/completions,tokenizer={folder},max_length=256"
        ours = evaluate(tmp_path, "ours", "local-completions", f"{arguments},tokenized_requests=True,num_concurrent=2")
    assert ours.keys() == theirs.keys() and len(ours) == 36
    assert sum(bool(*heard) for key, heard in theirs.items() if key[0] == "generate_until") > 6
    for key, heard in theirs.items():
        if key[0] == "generate_until":
            # Half a character at the end, which a cut may leave, is never shown by us.
            assert [text.rstrip("\ufffd") for text in heard] == [text.rstrip("\ufffd") for text in ours[key]]
            continue
        for (value, greedy), (our_value, our_greedy) in zip(heard, ours[key], strict=True):
            assert float(our_value) == pytest.approx(float(value), abs=1e-3) and our_greedy == greedy
