"""The Triton model of a workspace, driven as Triton's Python backend drives one, on an echo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.echo import EchoModel, echo_text_engine
from tests.support.triton_backend import InferenceRequest, TritonModelException, backend

from tokenmill.api.workspace import CONFIG_PBTXT, MODEL_PY
from tokenmill.errors import FormatError
from tokenmill.serve.triton import model as triton_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace" / "model_repository" / "tokenmill"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG_PBTXT)
    (folder / "1" / "model.py").write_text(MODEL_PY)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[EchoModel]:
    models: list[EchoModel] = []

    async def open_echo(path: str) -> EchoModel:
        assert Path(path).resolve().name == "workspace"
        models.append(echo_text_engine(delay_s=0.002))
        return models[-1]

    monkeypatch.setattr(triton_model, "open_engine", open_echo)
    return models


@pytest.fixture
def model(repository: Path, opened: list[EchoModel]) -> Iterator[Any]:
    with backend(repository) as found:
        yield found
    assert opened[0].fake.closed and not opened[0].fake.live


def said(request: InferenceRequest) -> tuple[list[str], list[str]]:
    """Texts and finish reasons of all responses."""
    responses = request.wait()
    assert all(r.error is None for r in responses)
    texts = [r.outputs["text_output"].tolist()[0].decode() for r in responses]
    return texts, [r.outputs["finish_reason"].tolist()[0].decode() for r in responses]


def test_whole_answers_side_by_side(model: Any, opened: list[EchoModel]) -> None:
    requests = [InferenceRequest(text_input=f"question {i} 你好") for i in range(5)]
    model.execute(requests)
    assert [said(r) for r in requests] == [([f"question {i} 你好"], ["stop"]) for i in range(5)]
    assert len({r.id for r in opened[0].fake.seen}) == 5


def test_a_streamed_answer(model: Any) -> None:
    request = InferenceRequest(text_input="abc狐狸", stream=True)
    model.execute([request])
    texts, reasons = said(request)
    assert "".join(texts) == "abc狐狸" and len(texts) > 4 and reasons[-1] == "stop" and not any(reasons[:-1])


def test_parameters_reach_the_engine(model: Any, opened: list[EchoModel]) -> None:
    parameters = {"temperature": 0.5, "top_k": 3, "seed": 7, "max_tokens": 4, "stop": "z"}
    request = InferenceRequest(text_input="abcdefgh", sampling_parameters=json.dumps(parameters))
    model.execute([request])
    assert said(request) == (["abcd"], ["length"])
    sampling = opened[0].fake.seen[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.5, 3, 7)
    stopped = InferenceRequest(text_input="abcdefgh", sampling_parameters='{"stop": ["de"]}')
    model.execute([stopped])
    assert said(stopped) == (["abc"], ["stop"])


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"text_input": "a", "sampling_parameters": "{"}, "no JSON"),
        ({"text_input": "a", "sampling_parameters": "[1]"}, "JSON object"),
        ({"text_input": "a", "sampling_parameters": '{"temperature": true}'}, "temperature is True"),
        ({"text_input": "a", "sampling_parameters": '{"temperature": NaN}'}, "temperature is nan"),
        ({"text_input": "a", "sampling_parameters": '{"top_k": 1.5}'}, "top_k is 1.5"),
        ({"text_input": "a", "sampling_parameters": '{"top_k": 1e999}'}, "top_k is inf"),
        ({"text_input": "a", "sampling_parameters": '{"max_tokens": -1}'}, "max_tokens is -1"),
        ({"text_input": "a", "sampling_parameters": '{"stop": [""]}'}, "stop must be"),
        ({"text_input": "a", "sampling_parameters": '{"heat": 1}'}, "heat"),
        ({"text_input": b"\xff\xfe"}, "no UTF-8"),
        ({"text_input": "a" * 5000}, "4096"),
    ],
)
def test_a_bad_request_fails_alone(model: Any, inputs: dict[str, Any], told: str) -> None:
    bad, good = InferenceRequest(**inputs), InferenceRequest(text_input="fine")
    model.execute([bad, good])
    (response,) = bad.wait()
    assert response.error is not None and told in response.error.message()
    assert said(good) == (["fine"], ["stop"])


def test_a_cancelled_request_is_aborted(model: Any, opened: list[EchoModel]) -> None:
    request = InferenceRequest(text_input="x" * 3000, stream=True)
    model.execute([request])
    assert request.sender.some.wait(120)
    request.sender.cancelled = True
    assert len(request.wait()) < 3000 and not opened[0].fake.live


def test_a_model_that_does_not_load_is_told(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(path: str) -> EchoModel:
        raise FormatError("no weights here")

    monkeypatch.setattr(triton_model, "open_engine", broken)
    with pytest.raises(TritonModelException, match="no weights here"), backend(repository):
        pass
