"""`tokenmill.serve` starts the server a user would, and the client ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

import tokenmill
from tokenmill.api.serving import _flags
from tokenmill.errors import ConfigError, RequestError
from tokenmill.models.tiny import make_tiny


def test_serve_and_close(tmp_path: Path) -> None:
    model = make_tiny("internlm2", tmp_path / "tiny")
    wish = tokenmill.PytorchEngineConfig(device_type="cpu", session_len=128, max_batch_size=4)
    template = tokenmill.ChatTemplateConfig("internlm2", meta_instruction="Be kind.")
    api = tokenmill.serve(str(model), "named", backend_config=wish, chat_template_config=template,
                          server_name="127.0.0.1", server_port=0, api_keys="k1,k2")  # fmt: skip
    with api:
        assert api.available_models == ["named"]
        [answer] = api.chat_completions_v1("named", [{"role": "user", "content": "Hi"}], max_tokens=3, temperature=0)
        assert answer["usage"]["completion_tokens"] <= 3 and answer["usage"]["prompt_tokens"] > 20
        with pytest.raises(RequestError) as refused:
            _ = tokenmill.client(api.url, "wrong").available_models
        assert refused.value.status == 401
        url = api.url
    with tokenmill.client(url) as gone, pytest.raises(RequestError, match="does not answer"):
        _ = gone.available_models


def test_what_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no argument port"):
        tokenmill.serve("demo", port=1)
    with pytest.raises(ConfigError, match="exit code"):
        tokenmill.serve(str(tmp_path), server_name="127.0.0.1", server_port=0)


def test_flags_of_a_record() -> None:
    wish = tokenmill.TurbomindEngineConfig(tp=2, quant_policy=8, hf_overrides={"a": 1}, cache_max_entry_count=0.4)
    said = " ".join(_flags(wish))
    assert said == '--tp 2 --cache-max-entry-count 0.4 --quant-policy 8 --hf-overrides {"a": 1}'
