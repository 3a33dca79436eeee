"""Images through the pipeline and over HTTP: every way to name one gives the same answer; each hostile one its 400."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from tests.support.http_server import LOOPBACK, client_of
from tests.support.pictures import data_url, encoded, picture, png_bomb

from tokenmill import GenerationConfig, TurbomindEngineConfig, pipeline
from tokenmill.api.build import open_text_engine
from tokenmill.api.contract import TextEngine
from tokenmill.api.pipeline import Pipeline
from tokenmill.config import EngineConfig, ModelConfig
from tokenmill.models.tiny import make_tiny
from tokenmill.serve.http import background

GREEDY = GenerationConfig(max_new_tokens=4, ignore_eos=True, top_k=1)
WIDE, TALL = picture(150, 60, 1), picture(40, 80, 2)
HOSTILE = {
    "bomb": png_bomb(12_000, 12_000, 600), "16k x 16k": png_bomb(16_000, 16_000, 8), "no image": b"abc" * 30,
    "cut short": encoded(WIDE)[:900],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("internvl", tmp_path_factory.mktemp("internvl"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    with pipeline(str(folder), TurbomindEngineConfig(session_len=256)) as made:
        yield made


def test_pairs_of_text_and_image(pipe: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(TALL))
    url = data_url(encoded(TALL))
    part = {"type": "image_url", "image_url": {"url": url}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "what"}]}]
    given = [("what", TALL), (TALL, "what"), ("what", [TALL]), ("what", str(path)), ("what", url), (url, "what")]
    answers = [answer.token_ids for answer in pipe([*given, messages], gen_config=GREEDY)]
    assert len(answers) == 7 and all(ids == answers[0] and len(ids) == 4 for ids in answers)
    single = pipe(("what", [TALL, WIDE]), gen_config=GREEDY)
    assert single.token_ids != answers[0] and single.input_token_len > 14 * 4


def test_a_session_keeps_its_images(pipe: Pipeline) -> None:
    talk = pipe.chat(("what", TALL), gen_config=GREEDY)
    talk = pipe.chat("and now", session=talk, gen_config=GREEDY)
    assert talk.response is not None and talk.response.input_token_len > 12 and talk.response.finish_reason == "length"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_image_is_an_error_of_its_prompt(pipe: Pipeline, name: str) -> None:
    bad, good = pipe([("what", data_url(HOSTILE[name])), ("what", TALL)], gen_config=GREEDY)
    assert bad.finish_reason == "error" and bad.error_message and good.finish_reason == "length"


def test_over_http(pipe: Pipeline, folder: Path) -> None:
    async def factory() -> TextEngine:
        config = EngineConfig(model=ModelConfig(str(folder), max_model_tokens=256))
        return await open_text_engine(config, name="tiny")

    with background(factory, LOOPBACK) as server, client_of(server, 60) as client:

        def ask(content: object, path: str = "/v1/chat/completions") -> tuple[int, dict]:
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 4, "top_k": 1}
            reply = client.post(path, json=body, headers={"anthropic-version": "2023-06-01"})
            return reply.status_code, reply.json()

        text = {"type": "text", "text": "what"}
        part = {"type": "image_url", "image_url": {"url": data_url(encoded(TALL))}}
        status, said = ask([part, text])
        wanted = pipe(("what", TALL), gen_config=GREEDY)
        assert status == 200 and wanted.text.startswith(said["choices"][0]["message"]["content"])
        assert said["usage"]["prompt_tokens"] == wanted.input_token_len
        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(encoded(TALL)).decode()}
        status, said = ask([{"type": "image", "source": source}, text], "/v1/messages")
        assert status == 200 and said["usage"]["input_tokens"] == wanted.input_token_len
        shown = {"type": "input_image", "image_url": data_url(encoded(TALL)), "detail": "auto"}
        content = [shown, {"type": "input_text", "text": "what"}]
        body = {"model": "tiny", "input": [{"role": "user", "content": content}], "max_output_tokens": 4,
                "temperature": 0}  # fmt: skip
        reply = client.post("/v1/responses", json=body)
        assert reply.status_code == 200, reply.text
        [item] = reply.json()["output"]
        assert wanted.text.startswith(item["content"][0]["text"])
        assert reply.json()["usage"]["input_tokens"] == wanted.input_token_len
        for wrong in ({"file_id": "file-1"}, {"image_url": None}, {"image_url": "http://127.0.0.1/x.png"}):
            content[0] = shown | wrong
            reply = client.post("/v1/responses", json=body)
            assert reply.status_code == 400 and reply.json()["error"]["message"], wrong
        bad = [*(data_url(data) for data in HOSTILE.values()), data_url(encoded(TALL), "jpeg"),
               "http://127.0.0.1/x.png", "http://169.254.169.254/", "data:image/png;base64," + "A" * 101, "no.png"]
        for url in bad:
            status, said = ask([{"type": "image_url", "image_url": {"url": url}}, text])
            assert status == 400 and said["error"]["message"], url[:60]
