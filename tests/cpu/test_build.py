"""From a folder to a served model: the whole way on tiny checkpoints, and what is wrong with a folder or a name."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tokenmill
from tokenmill import env
from tokenmill.api import hub
from tokenmill.api.build import open_text_engine, open_text_side, sampling_defaults
from tokenmill.api.templates import template_choice
from tokenmill.config import EngineConfig, KernelConfig, ModelConfig
from tokenmill.errors import ConfigError, FormatError, RequestError, TokenmillError
from tokenmill.models.tiny import make_tiny
from tokenmill.tokenize.choose import TemplateChoice
from tokenmill.tokenize.folder import TextFolder
from tokenmill.types import Finish, GrammarSpec, Sampling, TextRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny"))


def config_of(folder: Path | str) -> EngineConfig:
    return EngineConfig(model=ModelConfig(str(folder)), kernels=KernelConfig(device="cpu"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Iterator[tokenmill.Pipeline]:
    config = tokenmill.PytorchEngineConfig(dtype="float32", device_type="cpu", session_len=128)
    with tokenmill.pipeline(str(folder), config) as pipe:
        yield pipe


def reference(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


async def test_open_text_engine(folder: Path) -> None:
    engine = await open_text_engine(config_of(folder), name="served")
    try:
        assert engine.name == "served" and engine.limits.vocab_size == 512
        request = TextRequest("r", "hello 狐狸", max_new_tokens=9, sampling=Sampling(temperature=0.0))
        chunks = [chunk async for chunk in engine.generate(request)]
        assert chunks[-1].finish in (Finish.LENGTH, Finish.STOP) and chunks[-1].usage.completion_tokens <= 9
        schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}},
                  "required": ["a"], "additionalProperties": False}  # fmt: skip
        for seed in range(4):
            request = TextRequest(f"g{seed}", "x", max_new_tokens=150, sampling=Sampling(seed=seed),
                                  grammar=GrammarSpec("json_schema", json.dumps(schema)))  # fmt: skip
            chunks = [chunk async for chunk in engine.generate(request)]
            text = "".join(chunk.text for chunk in chunks)
            assert chunks[-1].finish is Finish.STOP and 0 <= json.loads(text)["a"] <= 99
        with pytest.raises(RequestError, match="regex"):
            async for _ in engine.generate(TextRequest("bad", "x", grammar=GrammarSpec("regex", "("))):
                pass
        stats = await engine.stats()
        assert stats.running == stats.waiting == 0 and stats.blocks_free == stats.blocks_total
    finally:
        await engine.close()


def test_pipeline_is_greedy_as_transformers(folder: Path, pipe: tokenmill.Pipeline) -> None:
    import torch

    model = reference(folder)
    prompts = [[5, 9, 300, 17], list(range(40, 80)), [256]]
    answers = pipe(prompts, tokenmill.GenerationConfig(max_new_tokens=12, ignore_eos=True))
    for ids, answer in zip(prompts, answers, strict=True):
        out = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert answer.token_ids == out[0, len(ids) :].tolist()
        assert (answer.input_token_len, answer.generate_token_len) == (len(ids), 12)


def test_get_ppl_is_transformers_loss(folder: Path, pipe: tokenmill.Pipeline) -> None:
    import torch

    model = reference(folder)
    ids = [[3, 1, 4, 1, 5, 9, 2, 6], list(range(10, 100))]
    for sequence, value in zip(ids, pipe.get_ppl(ids), strict=True):
        tensor = torch.tensor([sequence])
        with torch.no_grad():
            loss = model(tensor, labels=tensor).loss.item()
        assert math.isclose(value, loss, rel_tol=1e-4)


def test_logits_and_stream_of_a_real_engine(folder: Path, pipe: tokenmill.Pipeline) -> None:
    import torch

    ids = [7, 8, 9, 10]
    answer = pipe(ids, tokenmill.GenerationConfig(max_new_tokens=1, output_logits="all"))
    with torch.no_grad():
        expected = reference(folder)(torch.tensor([ids])).logits[0]
    assert answer.logits is not None
    torch.testing.assert_close(answer.logits[: len(ids)], expected, atol=1e-4, rtol=1e-4)
    config = tokenmill.GenerationConfig(max_new_tokens=20, do_sample=True, random_seed=3, temperature=1.0)
    whole = pipe(["a", "b"], config)
    parts = [tokenmill.Response(index=i) for i in range(2)]
    for piece in pipe.stream_infer(["a", "b"], gen_config=config):
        parts[piece.index].extend(piece)
    assert [p.text for p in parts] == [w.text for w in whole]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/no/such/folder", "no folder"), ("a/b/c", "no folder"), ("org/../x", "no hub name"), ("..", "config.json"),
        ("org/name@../x", "revision"), ("", "no folder"), ("name", "no folder"), ("org/na me", "no folder"),
    ],
)  # fmt: skip
def test_what_is_no_model(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(TokenmillError) as caught:
        hub.resolve_model(name)
    assert said in str(caught.value)


def test_folders_and_files(folder: Path, tmp_path: Path) -> None:
    assert hub.resolve_model(str(folder)) == folder
    with pytest.raises(FormatError, match=r"config\.json"):
        hub.resolve_model(str(tmp_path))
    with pytest.raises(FormatError, match="is a file"):
        hub.resolve_model(str(folder / "config.json"))


def test_hub_names_offline(tmp_path: Path) -> None:
    """Tests run with HF_HUB_OFFLINE: only what the cache holds is found."""
    assert hub.hub_name("org/name@v1.0") == hub.HubName("org/name", "v1.0")
    assert hub.hub_name("org/name", "main") == hub.HubName("org/name", "main")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        hub.resolve_model("org/name", download_dir=str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"")
    assert hub.resolve_model("org/name", download_dir=str(tmp_path)) == snapshot
    assert hub.resolve_model(f"org/name@{commit}", download_dir=str(tmp_path)) == snapshot
    with pytest.raises(ConfigError, match="not in the local cache"):
        hub.resolve_model("org/name@other", download_dir=str(tmp_path))


def test_only_data_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never code: the patterns given to the hub's client name no Python file; .bin only where nothing else is."""
    import huggingface_hub

    asked: list[list[str]] = []

    def download(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.append(allow_patterns)
        (tmp_path / "config.json").write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub.resolve_model("org/name")
    assert len(asked) == 2 and "*.bin" in asked[1] and "*.bin" not in asked[0]
    assert not any(pattern.endswith((".py", "*")) for patterns in asked for pattern in patterns)


def test_modelscope_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMDEPLOY_USE_MODELSCOPE", "True")
    assert env.use_modelscope()
    monkeypatch.setitem(__import__("sys").modules, "modelscope", None)
    with pytest.raises(ConfigError, match="modelscope is not installed"):
        hub.resolve_model("org/name")


def test_modelscope_gets_the_name_and_data_files_only(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(folder)

    monkeypatch.setenv("LMDEPLOY_USE_MODELSCOPE", "True")
    monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=snapshot_download))
    assert hub.resolve_model("org/name@v2", download_dir="cache") == folder
    [(name, options)] = asked
    assert (name, options["revision"], options["cache_dir"]) == ("org/name", "v2", "cache")
    assert not any(pattern.endswith((".py", "*")) for pattern in options["allow_patterns"])


def test_a_hub_name_decides_the_template_of_a_folder_without_one(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--internlm--internlm-chat-7b" / "snapshots" / ("0" * 40)
    make_tiny("llama", snapshot)
    file = snapshot / "tokenizer_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in said.items() if key != "chat_template"}))
    (tmp_path / "models--internlm--internlm-chat-7b" / "refs").mkdir()
    (tmp_path / "models--internlm--internlm-chat-7b" / "refs" / "main").write_text("0" * 40)
    wish = EngineConfig(model=ModelConfig("internlm/internlm-chat-7b", download_dir=str(tmp_path)))
    assert open_text_side(wish, TemplateChoice(), None, None)[1].template.name == "internlm"
    # What it is served as goes first: `--model-name qwen-7b`, or the model_name of a config.ini.
    assert open_text_side(wish, TemplateChoice(), None, None, ("qwen-7b",))[1].template.name == "qwen"


async def test_refused_before_weights_are_read(folder: Path, tmp_path: Path) -> None:
    for options in ({"chat_template": "no-such"}, {"tool_call_parser": "no-such"}, {"reasoning_parser": "no-such"}):
        with pytest.raises(ConfigError, match="no-such"):
            await open_text_engine(config_of(folder), **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="dtype"):
        await open_text_engine(EngineConfig(model=ModelConfig(str(folder), dtype="int3")))


def test_template_choices(tmp_path: Path) -> None:
    assert template_choice(None).name is None
    assert template_choice("vicuna").name == "vicuna"
    (tmp_path / "t.json").write_text('{"model_name": "internlm2", "meta_instruction": "Hi", "stop_words": ["x"]}')
    choice = template_choice(str(tmp_path / "t.json"))
    assert (choice.name, choice.pieces.meta_instruction, choice.pieces.stop_words) == ("internlm2", "Hi", ("x",))
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert template_choice(str(tmp_path / "t.jinja")).jinja == "{{ messages }}"
    for wrong in ("missing.json", "missing.jinja", '{"a": 1}', '{"system": 5}', "{", '{"stop_words": "x"}'):
        with pytest.raises(ConfigError):
            template_choice(wrong)


def test_sampling_defaults(tmp_path: Path) -> None:
    said = {"temperature": 1, "top_p": 0.9, "top_k": 5}
    folder = TextFolder(tmp_path, {}, said, {}, {})
    found = sampling_defaults(folder)
    assert (found.temperature, found.top_p, found.top_k, found.repetition_penalty) == (1.0, 0.9, 5, None)
    assert sampling_defaults(folder, "lmdeploy").temperature is None
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.1}')
    assert sampling_defaults(folder, str(tmp_path)).temperature == 0.1
    with pytest.raises(FormatError, match="top_p"):
        sampling_defaults(TextFolder(tmp_path, {}, {"top_p": "high"}, {}, {}))
