"""What answers in a terminal: a text engine in this program, or a server over HTTP."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tokenmill.api.contract import TextEngine
from tokenmill.errors import RequestError
from tokenmill.serve.ui.conversation import Message, Piece, Settings
from tokenmill.types import Finish, Sampling, TextRequest


def sampling(settings: Settings) -> Sampling:
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        repetition_penalty=settings.repetition_penalty,
        seed=settings.seed,
    )


def new_part(rendered: str, messages: tuple[Message, ...]) -> str:
    """What this turn adds to a rendered conversation: all of it at first, later only what follows the last answer."""
    answered = [str(m["content"]) for m in messages if m["role"] == "assistant"]
    if not answered or answered[-1] not in rendered:
        return rendered
    rest = rendered[rendered.rindex(answered[-1]) + len(answered[-1]) :]
    # The answer's own end (`<eoa>` and a line break) closes the turn before.
    end = rest.find("\n") + 1
    return rest[end:] if end <= rest.find(str(messages[-1]["content"])) else rest


class EngineTalk:
    """Answers of a text engine in this program."""

    def __init__(self, engine: TextEngine, shows_prompt: bool = False):
        self.name = engine.name
        self._engine = engine
        self._shows_prompt = shows_prompt

    async def answer(self, messages: tuple[Message, ...], settings: Settings) -> AsyncIterator[Piece]:
        if self._shows_prompt:
            yield Piece(echo=new_part(await self._engine.codec.render(messages), messages))
        request = TextRequest(
            id=uuid.uuid4().hex,
            prompt=messages,
            sampling=sampling(settings),
            max_new_tokens=settings.max_new_tokens,
        )
        async with contextlib.aclosing(self._engine.generate(request)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.finish is Finish.ERROR:
                    raise RequestError(chunk.error or "the engine gave up on this answer", 500)
                yield Piece(chunk.text, chunk.finish and chunk.finish.value, chunk.usage.completion_tokens)

    async def close(self) -> None:
        await self._engine.close()


class HttpTalk:
    """Answers of a server with OpenAI's routes. `url` may lack its scheme; `model` None is the server's first."""

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None):
        base = url if "://" in url else f"http://{url}"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # 0.0.0.0 is where a server listens, not where it can be reached on every platform.
        base = base.rstrip("/").removesuffix("/v1").replace("//0.0.0.0", "//127.0.0.1")
        self._client = httpx.AsyncClient(base_url=base, headers=headers, timeout=httpx.Timeout(10, read=600))
        self.name = model or ""

    async def connect(self) -> None:
        """Finds the model's name. Raises RequestError in words where there is no server or no entry."""
        try:
            response = await self._client.get("/v1/models")
        except httpx.HTTPError as error:
            raise RequestError(f"no server answers at {self._client.base_url}: {error}", 503) from None
        raise_for(response.status_code, response.content)
        self.name = self.name or response.json()["data"][0]["id"]

    async def answer(self, messages: tuple[Message, ...], settings: Settings) -> AsyncIterator[Piece]:
        body = {"model": self.name, "messages": list(messages), "stream": True, **fields(settings)}
        try:
            async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    raise_for(response.status_code, await response.aread())
                async for piece in pieces(response.aiter_lines()):
                    yield piece
        except httpx.HTTPError as error:
            raise RequestError(f"the connection to the server broke: {error!r}", 503) from None

    async def close(self) -> None:
        await self._client.aclose()


def fields(settings: Settings) -> dict[str, Any]:
    """The settings as fields of a chat request."""
    named = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "repetition_penalty": settings.repetition_penalty,
        "max_tokens": settings.max_new_tokens,
        "seed": settings.seed,
        "stream_options": {"include_usage": True},
    }
    return {name: value for name, value in named.items() if value is not None}


async def pieces(lines: AsyncIterator[str]) -> AsyncIterator[Piece]:
    """Pieces of a stream of server-sent events. Raises RequestError for an error event."""
    async for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        event = json.loads(data)
        if event.get("object") == "error" or event.get("error"):
            raise RequestError(message_of(event), 500)
        tokens = (event.get("usage") or {}).get("completion_tokens") or 0
        for choice in event.get("choices") or [{}]:
            text = (choice.get("delta") or {}).get("content") or ""
            yield Piece(text, choice.get("finish_reason"), tokens)


def message_of(body: Any) -> str:
    """The message of an error body, OpenAI's or LMDeploy's."""
    inner = body.get("error") if isinstance(body, dict) else None
    if isinstance(inner, dict):
        return str(inner.get("message"))
    return str(body.get("message", body)) if isinstance(body, dict) else str(body)


def raise_for(status: int, content: bytes) -> None:
    """RequestError in the server's own words where it refused."""
    if status == 200:
        return
    try:
        body = json.loads(content)
    except ValueError:
        body = f"the server answered {status}"
    inner = body.get("error") if isinstance(body, dict) else None
    code = inner.get("code") if isinstance(inner, dict) else None
    hint = " (give --api-key)" if status == 401 else ""
    raise RequestError(message_of(body) + hint, status, code=code)
