"""Triton's Python backend as its documentation describes it: tensors, requests, senders, and a model's life.

Stands in for `triton_python_backend_utils`, which exists inside a Triton server only. `Backend` does what the server
does with a repository's folder: reads config.pbtxt for the parameters, loads `1/model.py`, initializes, executes.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

FINAL = 1


class TritonError(Exception):
    def message(self) -> str:
        return str(self)


class TritonModelException(Exception):
    pass


class Tensor:
    def __init__(self, name: str, values: np.ndarray[Any, Any]):
        assert isinstance(values, np.ndarray)
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self._values


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None):
        assert error is None or isinstance(error, TritonError)
        self.outputs = {t.name(): t.as_numpy() for t in output_tensors or []}
        self.error = error


class Sender:
    """Collects responses; nothing may follow the final flag."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.done, self.some, self.cancelled = threading.Event(), threading.Event(), False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.done.is_set(), "a response after the last"
        if response is not None:
            self.responses.append(response)
            self.some.set()
        if flags == FINAL:
            self.done.set()

    def is_cancelled(self) -> bool:
        return self.cancelled


class InferenceRequest:
    def __init__(self, **inputs: Any):
        self.sender = Sender()
        self.inputs = {name: Tensor(name, to_array(value)) for name, value in inputs.items()}

    def get_response_sender(self) -> Sender:
        return self.sender

    def wait(self) -> list[InferenceResponse]:
        assert self.sender.done.wait(120), "no last response"
        return self.sender.responses


def to_array(value: Any) -> np.ndarray[Any, Any]:
    """TYPE_STRING inputs come as bytes."""
    if isinstance(value, bool):
        return np.array([value])
    return np.array([value if isinstance(value, bytes) else str(value).encode()], dtype=np.object_)


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return request.inputs.get(name)


@contextmanager
def backend(repository: Path) -> Iterator[Any]:
    """The model of `repository` (a folder with config.pbtxt and 1/model.py), initialized; finalized at the end."""
    utils = ModuleType("triton_python_backend_utils")
    utils.__dict__.update(
        Tensor=Tensor, InferenceResponse=InferenceResponse, TritonError=TritonError,
        TritonModelException=TritonModelException, TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        get_input_tensor_by_name=get_input_tensor_by_name,
    )  # fmt: skip
    text = (repository / "config.pbtxt").read_text()
    assert "decoupled: true" in text and 'backend: "python"' in text
    said = re.findall(r'key: "(\w+)" value: \{ string_value: "([^"]*)" \}', text)
    config = {"parameters": {key: {"string_value": value} for key, value in said}}
    sys.modules["triton_python_backend_utils"] = utils
    try:
        spec = importlib.util.spec_from_file_location("triton_model", repository / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        said_to_it = {"model_config": json.dumps(config), "model_repository": str(repository), "model_version": "1"}
        model.initialize(said_to_it)
        try:
            yield model
        finally:
            model.finalize()
    finally:
        del sys.modules["triton_python_backend_utils"]
