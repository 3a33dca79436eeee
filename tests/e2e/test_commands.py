"""The main commands from checkpoint to answer, on tiny random checkpoints of both families."""

from __future__ import annotations

import json
import re
from pathlib import Path

import openai
import pytest
import torch
from tests.support.commands import run, serving
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tokenmill.cli.main import main
from tokenmill.serve.ui.terminal import PROMPT

TEXT = "The quick brown fox jumps over the lazy dog. Hello, how are you today? 12 + 30 = 42; 从前，有一只狐狸。 " * 6
QUESTION = [{"role": "user", "content": "Hello, how are you?"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder of each family."""
    made = {family: str(tmp_path_factory.mktemp("models") / family) for family in ("llama", "internlm2")}
    for family, folder in made.items():
        assert main(["make-tiny", family, folder]) == 0
    return made


def test_chat_over_a_pipe(models: dict[str, str]) -> None:
    """Two turns, the second with the first before it: the same question gets another answer; `end` brings back the
    first."""
    typed = "Hello\n\nHello\n\nend\nHello\n\nexit\n"
    done = run("chat", models["internlm2"], "--temperature", "0", "--max-new-tokens", "12", typed=typed)
    assert done.returncode == 0, done.stderr
    first, second, forgotten, third, _ = done.stdout.removeprefix(PROMPT).split(PROMPT)
    assert first.strip() and first == third != second and "afresh" in forgotten
    assert "weights" in done.stderr and "KV cache" in done.stderr and "Traceback" not in done.stderr


def greedy_by_transformers(folder: str, prompt_ids: list[int], count: int) -> str:
    """What a plain loop over transformers' own model says."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = torch.tensor([prompt_ids])
    out = model.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(out[0, len(prompt_ids) :], skip_special_tokens=True))


def test_a_server_answers_the_openai_client_as_transformers_would(models: dict[str, str], tmp_path: Path) -> None:
    folder = models["llama"]
    with serving(folder, "--model-name", "internlm-chat-7b") as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
        assert client.models.list().data[0].id == "internlm-chat-7b"
        ask = {"model": "internlm-chat-7b", "messages": QUESTION, "temperature": 0, "max_tokens": 16}
        whole = client.chat.completions.create(**ask)
        pieces = [e.choices[0].delta.content or "" for e in client.chat.completions.create(**ask, stream=True)]
        assert "".join(pieces) == whole.choices[0].message.content
        assert whole.usage is not None and whole.usage.completion_tokens <= 16

        ids = list(range(20, 60))
        plain = client.completions.create(model="internlm-chat-7b", prompt=ids, temperature=0, max_tokens=16)
        assert plain.choices[0].text == greedy_by_transformers(folder, ids, 16)

        sampled = [client.completions.create(model="internlm-chat-7b", prompt="fox", seed=seed, max_tokens=12,
                                             temperature=1).choices[0].text for seed in (1, 1, 2)]  # fmt: skip
        assert sampled[0] == sampled[1] != sampled[2]

        file = tmp_path / "bench.jsonl"
        assert main(["bench", "serve", served.url, "--workload", "static:3x16x8", "--vocab-size", "300",
                     "--output-file", str(file)]) == 0  # fmt: skip
        found = json.loads(file.read_text())
        assert (found["failed"], found["new_tokens"]) == (0, 24)

        talked = run("serve", "api_client", served.url, "--max-new-tokens", "4", typed="Hi\n\nexit\n")
        assert talked.returncode == 0 and talked.stdout.count(PROMPT) == 2, talked.stderr
    assert served.ended == 0 and served.said.count("HINT:") == 3
    assert "Traceback" not in served.told and "KV cache" in served.told


@pytest.mark.parametrize("family", ["llama", "internlm2"])
def test_parity_with_transformers(family: str, models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "parity", models[family]]) == 0
    assert "every stage agrees" in capsys.readouterr().out


def test_plan_reads_config_json_alone(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text((Path(models["llama"]) / "config.json").read_text())
    for model in (models["llama"], str(file)):
        assert main(["plan", model, "--gpu-memory", "24GiB", "--batch", "8"]) == 0
        assert {"fp16", "w4", "int8"} <= set(capsys.readouterr().out.split())


def nll_by_transformers(folder: str, text: str, window: int, stride: int) -> tuple[float, int]:
    """Mean negative log-probability over strided windows, each token counted once."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = torch.tensor([tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)])
    total, counted, count = 0.0, 1, 0
    for start in range(0, len(ids), stride):
        stop = min(start + window, len(ids))
        with torch.no_grad():
            logprobs = model(ids[None, start:stop]).logits[0].log_softmax(-1)
        for i in range(max(counted, start + 1), stop):
            total -= float(logprobs[i - 1 - start, ids[i]])
            count += 1
        counted = stop
        if stop == len(ids):
            break
    return total / count, count


def test_perplexity_equals_transformers(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    command = ["eval", "ppl", models["llama"], "--text", str(file), "--window", "64", "--stride", "32"]
    # Chunks of 24 tokens cut every window; the answer must not depend on that.
    assert main([*command, "--max-prefill-token-num", "24", "--max-batch-size", "4"]) == 0
    shown = re.search(r"nll ([\d.]+)  tokens (\d+)", capsys.readouterr().out)
    nll, tokens = nll_by_transformers(models["llama"], TEXT, 64, 32)
    assert shown is not None and int(shown[2]) == tokens
    assert float(shown[1]) == pytest.approx(nll, abs=2e-5)


def test_bench_engine(models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.jsonl"
    command = ["bench", "engine", models["internlm2"], "--workload", "static:4x32x16", "trace:5"]
    assert main([*command, "--output-file", str(file)]) == 0
    first, second = [json.loads(line) for line in file.read_text().splitlines()]
    assert (first["failed"], first["new_tokens"], second["failed"]) == (0, 64, 0)
    assert "static:4x32x16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("chat", "no/such/folder/here"), 2, "no hub name"),
        (("chat", "org/name"), 2, "HF_HUB_OFFLINE"),
        (("serve", "api_server", "tests"), 3, "config.json"),
        (("eval", "ppl", "nowhere", "--text", "pyproject.toml"), 2, "nowhere"),
    ],
)
def test_a_model_that_is_none_is_one_line(words: tuple[str, ...], code: int, told: str) -> None:
    done = run(*words)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code and len(errors) == 1 and told in errors[0]
    assert "Traceback" not in done.stderr
