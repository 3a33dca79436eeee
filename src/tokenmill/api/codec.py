"""Text to ids and back for a served model, off the event loop. The only holder of tokenizer and chat template."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenmill.api.images import ImageDesk
from tokenmill.errors import RequestError
from tokenmill.tokenize.template import ChatTemplate
from tokenmill.tokenize.tokenizer import Tokenizer
from tokenmill.types import MediaRef, Message, TextRequest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    """A prompt as the engine takes it: ids, and the images that some of them stand for."""

    ids: tuple[int, ...]
    media: tuple[MediaRef, ...] = ()


class Codec:
    """Implements api/contract.TextCodec. Works run in two threads: a long prompt does not hold up short ones."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, vocab_size: int, images: ImageDesk | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.vocab_size = vocab_size
        self.images = images
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="tokenmill-text")

    async def encode(self, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        return await self._run(lambda: tuple(self.tokenizer.encode(text, add_special_tokens)))

    async def decode(self, ids: tuple[int, ...], skip_special_tokens: bool = True) -> str:
        self.check_ids(ids)
        return await self._run(lambda: self.tokenizer.decode(ids, skip_special_tokens))

    async def render(
        self, messages: tuple[Message, ...], tools: tuple[Message, ...] = (), options: dict[str, Any] | None = None
    ) -> str:
        return await self._run(lambda: self.template.render(messages, tools, options or {}))

    async def prompt_ids(self, request: TextRequest, tools: tuple[Message, ...]) -> tuple[int, ...]:
        """The ids a request's prompt stands for. Raises RequestError where it is empty or cannot be written."""
        written = await self.write(request, tools)
        self.release(written.media)
        return written.ids

    async def write(self, request: TextRequest, tools: tuple[Message, ...]) -> Written:
        """The same with the prompt's images, which are held until `release`."""
        prompt = request.prompt
        if isinstance(prompt, str) and not request.chat:
            return Written(await self.encode(prompt))
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], int):
            ids = tuple(token for token in prompt if isinstance(token, int))
            self.check_ids(ids)
            return Written(ids)
        messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else _messages(prompt)
        if self.images is None:
            return Written(await self._run(lambda: self._chat_ids(messages, tools, request.template_options)))
        plain, images = await self.images.take(messages)
        try:
            ids = await self._run(lambda: self._chat_ids(tuple(plain), tools, request.template_options))
            return Written(*self.images.place(ids, images))
        except BaseException:
            self.images.release([image.digest for image in images])
            raise

    def release(self, media: tuple[MediaRef, ...]) -> None:
        """Gives back images that `write` held."""
        if self.images is not None:
            self.images.release([image.digest for image in media])

    def check_ids(self, ids: tuple[int, ...]) -> None:
        """Raises RequestError on an id the model does not have."""
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise RequestError(f"token id {token} is outside [0, {self.vocab_size})", param="prompt")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self.images is not None:
            self.images.close()
        self.template.close()

    def _chat_ids(self, messages: tuple[Message, ...], tools: tuple[Message, ...], options: Any) -> tuple[int, ...]:
        text = self.template.render(messages, tools, options)
        if self.images is not None:
            text = self.images.facts.words.spread(text)
        return tuple(self.tokenizer.encode(text, self.template.special_tokens))

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _messages(prompt: tuple[Any, ...]) -> tuple[Message, ...]:
    if not prompt:
        raise RequestError("the prompt is empty; send text, token ids or messages", param="prompt")
    return prompt
