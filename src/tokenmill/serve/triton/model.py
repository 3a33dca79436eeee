"""Triton's Python backend, over a text engine: `model.py` of the repository that `tokenmill convert` writes imports it.

Inputs are those of Triton's generate extension: `text_input`, and if wanted `stream` and `sampling_parameters` (a JSON
object with temperature, top_p, top_k, min_p, repetition_penalty, seed, max_tokens, stop, ignore_eos). Outputs are
`text_output` (a piece where streamed, else all of it) and `finish_reason` (empty until the last). Transactions are
decoupled: requests run side by side in one engine, and a cancelled one is aborted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from tokenmill.api.contract import TextEngine
from tokenmill.config import EngineConfig, ModelConfig
from tokenmill.errors import RequestError, TokenmillError
from tokenmill.types import Chunk, Finish, Sampling, TextRequest

NUMBERS = {"temperature": (0.0, 2.0), "top_p": (0.001, 1.0), "min_p": (0.0, 1.0), "repetition_penalty": (0.01, 10.0)}
WHOLES = {"top_k": (0, 1 << 20), "seed": (0, (1 << 63) - 1), "max_tokens": (0, 1 << 24)}
MAX_STOPS = 16


def request_of(text: str, parameters: str) -> TextRequest:
    """A completion of `text`. Raises RequestError that names the parameter."""
    try:
        said = json.loads(parameters) if parameters else {}
    except (ValueError, RecursionError) as error:
        raise RequestError(f"sampling_parameters is no JSON: {error}") from None
    if not isinstance(said, dict):
        raise RequestError("sampling_parameters must be a JSON object")
    known = {*NUMBERS, *WHOLES, "stop", "ignore_eos"}
    if set(said) - known:
        raise RequestError(f"sampling_parameters has {', '.join(sorted(set(said) - known))}; known are {sorted(known)}")
    numbers: dict[str, Any] = {name: bounded(said, name, NUMBERS[name]) for name in NUMBERS if name in said}
    numbers |= {name: int(bounded(said, name, WHOLES[name])) for name in WHOLES if name in said}
    most = numbers.pop("max_tokens", None)
    return TextRequest(
        uuid.uuid4().hex, text, chat=False, sampling=Sampling(**numbers), max_new_tokens=most,
        stop_strings=stops(said.get("stop")), ignore_eos=said.get("ignore_eos") is True,
    )  # fmt: skip


def bounded(said: dict[str, Any], name: str, bounds: tuple[float, float]) -> float:
    value = said[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = name in WHOLES
    if not is_number or not bounds[0] <= value <= bounds[1] or (whole and value != int(value)):
        raise RequestError(f"{name} is {value!r}; it must be a number from {bounds[0]:g} to {bounds[1]:g}", param=name)
    return value if whole else float(value)


def stops(value: Any) -> tuple[str, ...]:
    """No, one, or several stop strings."""
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()
    if value not in (None, False) and (not found or len(found) > MAX_STOPS or not all(is_stop(s) for s in found)):
        raise RequestError(f"stop must be a text or a list of 1 to {MAX_STOPS} texts", param="stop")
    return found


def is_stop(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 256


async def open_engine(path: str) -> TextEngine:
    from tokenmill.api.build import open_text_engine

    return await open_text_engine(EngineConfig(ModelConfig(path)))


class TritonPythonModel:
    """What the backend calls: `initialize` once, `execute` for requests that came together, `finalize` at the end."""

    def initialize(self, args: dict[str, str]) -> None:
        import triton_python_backend_utils as pb_utils

        self._utils = pb_utils
        said = json.loads(args["model_config"])["parameters"]["model"]["string_value"]
        # A relative path counts from the model's own folder in the repository.
        path = str(Path(args["model_repository"]) / said)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tokenmill", daemon=True)
        self._thread.start()
        try:
            self._engine = self._run(open_engine(path))
        except TokenmillError as error:
            self._stop()
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: list[Any]) -> None:
        """Starts every request and returns: answers go through each one's own sender."""
        for request in requests:
            asyncio.run_coroutine_threadsafe(self._serve(request), self._loop)

    def finalize(self) -> None:
        self._run(self._engine.close())
        self._stop()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, request: Any) -> None:
        """One request to its end. Whatever fails is told to its client and to no other."""
        sender = request.get_response_sender()
        try:
            async for response in self._responses(request, sender):
                sender.send(response)
        except TokenmillError as error:
            sender.send(self._failure(str(error)))
        except Exception as error:  # noqa: BLE001 - one request's defect must not take the backend with it
            sender.send(self._failure(f"a defect of Tokenmill: {type(error).__name__}"))
        finally:
            sender.send(flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _responses(self, request: Any, sender: Any) -> AsyncIterator[Any]:
        wish = request_of(self._text(request, "text_input") or "", self._text(request, "sampling_parameters") or "")
        stream, said = self._flag(request, "stream"), ""
        chunks = self._engine.generate(wish)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                if sender.is_cancelled():
                    return
                said += chunk.text
                if stream and (chunk.text or chunk.finish):
                    yield self._response(chunk.text, chunk)
                elif chunk.finish:
                    yield self._response(said, chunk)

    def _response(self, text: str, chunk: Chunk) -> Any:
        if chunk.finish is Finish.ERROR:
            return self._failure(chunk.error or "the engine gave up on this answer")
        outputs = {"text_output": text, "finish_reason": chunk.finish.value if chunk.finish else ""}
        tensors = [self._utils.Tensor(name, np.array([value.encode()], np.object_)) for name, value in outputs.items()]
        return self._utils.InferenceResponse(output_tensors=tensors)

    def _failure(self, message: str) -> Any:
        return self._utils.InferenceResponse(output_tensors=[], error=self._utils.TritonError(message))

    def _text(self, request: Any, name: str) -> str | None:
        tensor = self._utils.get_input_tensor_by_name(request, name)
        if tensor is None or not tensor.as_numpy().size:
            return None
        value = tensor.as_numpy().reshape(-1)[0]
        try:
            return value.decode("utf-8") if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            raise RequestError(f"{name} is no UTF-8 text", param=name) from None

    def _flag(self, request: Any, name: str) -> bool:
        tensor = self._utils.get_input_tensor_by_name(request, name)
        return tensor is not None and bool(tensor.as_numpy().reshape(-1)[0])
