"""A running server from Python: LMDeploy's APIClient, over OpenAI's routes.

`chat_completions_v1` and `completions_v1` are generators of dicts in both modes: many where streamed, one where not.
A refusal by the server raises RequestError with its status and message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import httpx

from tokenmill.errors import RequestError

_TIMEOUT = httpx.Timeout(10.0, read=600.0)
_CHAT = {"temperature": 0.7, "top_p": 1.0, "top_k": 40, "n": 1, "repetition_penalty": 1.0}
_COMPLETION = {**_CHAT, "max_tokens": 16}
_SESSION = {"top_p": 0.8, "top_k": 40, "temperature": 0.8, "repetition_penalty": 1.0, "ignore_eos": False}


class APIClient:
    """`api_server_url` like http://0.0.0.0:23333, with or without /v1. Close it, or use it in a `with` block."""

    def __init__(self, api_server_url: str, api_key: str | None = None) -> None:
        url = api_server_url if "://" in api_server_url else f"http://{api_server_url}"
        # 0.0.0.0 is where a server listens, not where it can be reached on every platform.
        self.url = url.rstrip("/").removesuffix("/v1").replace("//0.0.0.0", "//127.0.0.1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # No proxies of the environment: a server named by address is spoken to directly.
        self.server: Callable[[], object] | None = None
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT, trust_env=False)

    @cached_property
    def available_models(self) -> list[str]:
        """Ids of the models that are served."""
        return [model["id"] for model in self._json("GET", "/v1/models")["data"]]

    def is_ready(self) -> bool:
        """True once the server takes requests."""
        try:
            return self._http.get("/health", timeout=5.0).is_success
        except httpx.HTTPError:
            return False

    def encode(self, input: str | list[str], do_preprocess: bool = False, add_bos: bool = True) -> tuple[Any, Any]:
        """(ids, number of ids) as the server's tokenizer makes them."""
        body = {"input": input, "do_preprocess": do_preprocess, "add_bos": add_bos}
        found = self._json("POST", "/v1/encode", body)
        return found["input_ids"], found["length"]

    def chat_completions_v1(
        self, model: str, messages: str | list[dict[str, Any]], stream: bool = False, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Answers of /v1/chat/completions; `options` are its further fields."""
        body = {**_CHAT, **options, "model": model, "messages": messages, "stream": stream}
        return self._answers("/v1/chat/completions", body)

    def completions_v1(
        self, model: str, prompt: str | list[Any], stream: bool = False, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Answers of /v1/completions; `options` are its further fields."""
        body = {**_COMPLETION, **options, "model": model, "prompt": prompt, "stream": stream}
        return self._answers("/v1/completions", body)

    def chat_interactive_v1(
        self, prompt: str | list[dict[str, Any]], image_url: str | list[str] | None = None, session_id: int = -1,
        interactive_mode: bool = False, stream: bool = False, **options: Any,
    ) -> Iterator[dict[str, Any]]:
        """Answers of /v1/chat/interactive, where the server remembers session `session_id` while `interactive_mode`."""
        if image_url is not None:
            raise RequestError("images in a session are not served; use chat_completions_v1", 400, param="image_url")
        body = {**_SESSION, **options, "prompt": prompt, "session_id": session_id, "stream": stream}
        return self._answers("/v1/chat/interactive", {**body, "interactive_mode": interactive_mode})

    def chat(
        self, prompt: str, session_id: int, image_url: str | list[str] | None = None, request_output_len: int = 512,
        stream: bool = False, **options: Any,
    ) -> Iterator[tuple[str, int, str | None]]:
        """One turn of a session the server remembers: (text, tokens so far, finish_reason) of each piece."""
        found = self.chat_interactive_v1(
            prompt, image_url, session_id, True, stream, request_output_len=request_output_len, **options
        )
        for piece in found:
            yield piece["text"], piece["tokens"], piece["finish_reason"]

    def end_session(self, session_id: int) -> None:
        """The server forgets the session."""
        for _ in self.chat_interactive_v1("", session_id=session_id, request_output_len=0):
            pass

    def close(self) -> None:
        """Ends the connection, and the server where `serve` started it for this client."""
        self._http.close()
        if self.server is not None:
            self.server()

    def __enter__(self) -> APIClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _answers(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        body = {name: value for name, value in body.items() if value is not None}
        if body["stream"]:
            yield from self._stream(path, body)
        else:
            yield self._json("POST", path, body)

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            with self._http.stream("POST", path, json=body) as reply:
                if reply.is_error:
                    reply.read()
                    raise _refusal(reply)
                for line in reply.iter_lines():
                    # Events, or the interactive route's bare objects.
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    if data.startswith("{"):
                        yield _checked(json.loads(data))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            reply = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if reply.is_error:
            raise _refusal(reply)
        return reply.json()

    def _unreachable(self, error: Exception) -> RequestError:
        return RequestError(f"{self.url} does not answer ({error}); is the server running?", 503)


def client(api_server_url: str = "http://0.0.0.0:23333", api_key: str | None = None) -> APIClient:
    """An APIClient of a running server."""
    return APIClient(api_server_url, api_key)


def get_model_list(api_url: str, api_key: str | None = None) -> list[str]:
    """Ids of the models a server has; `api_url` may end in /v1/models."""
    with APIClient(api_url.rstrip("/").removesuffix("/models"), api_key) as server:
        return list(server.available_models)


def _refusal(reply: httpx.Response) -> RequestError:
    try:
        value = reply.json()
    except ValueError:
        value = {}
    inner = value.get("error", value) if isinstance(value, dict) else {}
    message = inner.get("message") if isinstance(inner, dict) else None
    return RequestError(str(message or reply.text[:300] or reply.reason_phrase), reply.status_code)


def _checked(event: dict[str, Any]) -> dict[str, Any]:
    """A stream that failed says so in an event of its own."""
    error = event.get("error")
    if error is not None or event.get("object") == "error":
        inner = error if isinstance(error, dict) else event
        raise RequestError(str(inner.get("message", "the answer failed")), 500)
    return event
