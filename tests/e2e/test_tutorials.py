"""Tutorials of LMDeploy's generations, typed as they stand with `tokenmill`, on tiny checkpoints of the named kind."""

from __future__ import annotations

import io
import shlex
import shutil
from pathlib import Path

import httpx
import openai
import pytest
from tests.support.commands import serving
from tests.support.triton_backend import InferenceRequest, backend

from tokenmill.api.workspace import REPOSITORY, WEIGHTS
from tokenmill.cli.main import main
from tokenmill.serve.ui.terminal import PROMPT

# The body of the first generation's Swagger page, with its types: a text for messages, false for stop.
SWAGGER_BODY = {
    "model": "internlm-chat-7b", "messages": "写一个300字的童话故事", "temperature": 0.7, "top_p": 1, "n": 1,
    "max_tokens": 512, "stop": False, "stream": False, "presence_penalty": 0, "frequency_penalty": 0, "user": "string",
    "repetition_penalty": 1, "renew_session": False, "ignore_eos": False,
}  # fmt: skip
CHINESE = [
    {"role": "system", "content": "你是一个有用的助手。"},
    {"role": "user", "content": "请讲一个关于狐狸和西瓜的小故事"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tutorials") / "internlm2_5-7b-chat"
    assert main(["make-tiny", "internlm2", str(folder)]) == 0
    return folder


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs a chat command in an empty folder with `typed` on stdin; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, typed: str = "你好\n\nexit\n") -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        code = main([*shlex.split(command), "--max-new-tokens", "4"])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.mark.parametrize(
    "command",
    [
        "chat turbomind {model} --model-name internlm-chat-7b",
        "chat {model} --cache-max-entry-count 0.4",
        "chat {model} --model-format hf --cache_max_entry_count 0.5 --tp 1",
        "chat {model} --quant-policy 8 --session-len 128",
        "chat torch {model} --temperature 0.8 --top-p 0.95 --seed 0 --use-fast-tokenizer True",
    ],
)
def test_chat(command: str, model: Path, chat) -> None:
    code, out, err = chat(command.format(model=model))
    assert code == 0 and out.count(PROMPT) == 2, err
    first_generation = "chat turbomind" in command
    assert ("<|im_start|>user\n你好<|im_end|>" in out) == first_generation
    assert "error" not in err and ("is now 'chat MODEL'" in err) == ("torch" in command or first_generation)


def test_chat_by_hub_name(model: Path, tmp_path: Path, chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the local hub cache, laid out as huggingface_hub does."""
    from huggingface_hub import constants

    cache, commit = tmp_path / "hub", "0123456789abcdef0123456789abcdef01234567"
    held = cache / "models--internlm--internlm2-chat-7b"
    shutil.copytree(model, held / "snapshots" / commit)
    (held / "refs").mkdir()
    (held / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    code, out, err = chat("chat internlm/internlm2-chat-7b")
    assert code == 0 and out.count(PROMPT) == 2, err


def test_the_first_generation(model: Path, chat, tmp_path: Path) -> None:
    """convert, chat with the workspace, edit config.ini, serve it, and post what the Swagger page holds."""
    assert main(["convert", "internlm-chat-7b", str(model)]) == 0
    code, out, err = chat("chat turbomind ./workspace", "你好\n\nend\n\nexit\n")
    assert code == 0 and "<|im_start|>user\n你好<|im_end|>" in out and "internlm-chat-7b: internlm2" in err

    ini = tmp_path / "workspace" / WEIGHTS / "config.ini"
    text = ini.read_text()
    for old, new in (("quant_policy = 0", "quant_policy = 4"), ("scaling_factor = 0.0", "scaling_factor = 1.0"),
                     ("use_logn_attn = 0", "use_logn_attn = 1")):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    ini.write_text(text)
    with serving("./workspace", "--instance_num", "64", "--tp", "1", cwd=tmp_path, dash="_") as served:
        assert openai.OpenAI(base_url=f"{served.url}/v1", api_key="x").models.list().data[0].id == "internlm-chat-7b"
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=SWAGGER_BODY, timeout=600)
        # Drawn without a seed, as the page does: a random model may end at once.
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] > 0
        assert isinstance(answer.json()["choices"][0]["message"]["content"], str)
        page = httpx.get(served.url, follow_redirects=True, timeout=600)
        document = httpx.get(f"{served.url}/openapi.json", timeout=600).text
        assert page.status_code == 200 and "chat/completions" in document
    assert served.ended == 0
    assert "(int8)" in served.told and "64 sequences" in served.told and "--max-batch-size" in served.told


def test_the_workspace_in_a_triton_server(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "internlm-chat-7b", str(model)]) == 0
    with backend(tmp_path / "workspace" / REPOSITORY) as triton:
        request = InferenceRequest(text_input="Hello", sampling_parameters='{"temperature": 0, "max_tokens": 8}')
        triton.execute([request])
        (response,) = request.wait()
    assert response.error is None and response.outputs["text_output"][0]


def test_the_openai_script(model: Path) -> None:
    """Today's tutorial: int4 cache, a small share, and the SDK with system and user messages in Chinese."""
    flags = shlex.split("--model-format hf --quant-policy 4 --cache-max-entry-count 0.1 --tp 1")
    with serving(str(model), *flags) as served:
        client = openai.OpenAI(api_key="YOUR_API_KEY", base_url=f"{served.url}/v1")
        name = client.models.list().data[0].id
        answer = client.chat.completions.create(model=name, messages=CHINESE, temperature=0.8, top_p=0.8, max_tokens=16)
        assert answer.choices[0].finish_reason in ("stop", "length") and name == str(model)
    assert served.ended == 0 and "(int4)" in served.told


def test_awq_from_checkpoint_to_chat(model: Path, chat, tmp_path: Path) -> None:
    command = f"lite auto_awq {model} --calib-dataset ptb --calib-samples 4 --calib-seqlen 64 --w-bits 4 "
    assert main(shlex.split(f"{command} --w-group-size 128 --batch-size 1 --search-scale False --work-dir DIR")) == 0
    code, out, err = chat("chat DIR --model-format awq --cache-max-entry-count 0.5")
    assert code == 0 and out.count(PROMPT) == 2, err
