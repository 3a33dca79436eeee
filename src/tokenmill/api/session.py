"""The text engine: an `Engine` of token ids, a tokenizer and a chat template make what every face sees.

Per request: render and tokenize in a thread, check lengths, hand over to the engine, turn its outputs into chunks. A
stop string that completes aborts the engine's request; closing the iterator early does too.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from tokenmill.api.answer import Answer, Parsers
from tokenmill.api.codec import Codec
from tokenmill.api.contract import SamplingDefaults, TextCodec, TextLimits
from tokenmill.api.grammars import GrammarCheck
from tokenmill.api.parsers import ParserNames, parsers_for
from tokenmill.api.prepare import EndOfText, chosen_tools, engine_request, stops_of
from tokenmill.api.thinking import thinking_of
from tokenmill.api.toolgrammar import TOOL_CALLS, constrained, for_tools
from tokenmill.engine.contract import Engine, Stats
from tokenmill.errors import EngineDeadError, RequestError
from tokenmill.types import Chunk, Finish, Request, TextRequest, Usage


@dataclass(frozen=True)
class TextParts:
    """What a served model is made of beside its engine."""

    name: str
    codec: Codec
    limits: TextLimits
    end: EndOfText
    defaults: SamplingDefaults = SamplingDefaults()
    parsers: ParserNames = field(default_factory=ParserNames)
    grammars: GrammarCheck | None = None


class ServedModel:
    """Implements api/contract.TextEngine on any Engine."""

    def __init__(self, engine: Engine, parts: TextParts) -> None:
        self.name = parts.name
        self.limits = parts.limits
        self.defaults = parts.defaults
        self.codec: TextCodec = parts.codec
        self.engine = engine
        self._parts = parts
        # Requests whose prompt is still being written; True once they were aborted meanwhile.
        self._preparing: dict[str, bool] = {}

    async def generate(self, request: TextRequest) -> AsyncIterator[Chunk]:
        """Chunks until one has `finish`. RequestError, where refused, comes with the first chunk asked for."""
        self._preparing[request.id] = False
        try:
            wish, answer = await self._prepare(request)
        finally:
            aborted = self._preparing.pop(request.id, False)
        try:
            async with aclosing(self._answered(request, wish, answer, aborted)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._parts.codec.release(wish.media)

    async def _answered(
        self, request: TextRequest, wish: Request, answer: Answer, aborted: bool
    ) -> AsyncGenerator[Chunk, None]:
        if aborted:
            usage = Usage(prompt_tokens=len(wish.prompt_ids))
            yield Chunk(finish=Finish.ABORT, prompt_ids=wish.prompt_ids, usage=usage)
            return
        stream = self.engine.generate(wish)
        try:
            async for output in stream:
                chunk = answer.feed(output)
                if chunk is None:
                    continue
                if chunk.finish is not None and output.finish is None:
                    self.engine.abort(request.id)
                yield chunk
                if chunk.finish is not None:
                    return
        finally:
            await _close(stream)
        raise EngineDeadError("the engine ended an answer without saying why; start it again")

    def abort(self, request_id: str) -> None:
        if request_id in self._preparing:
            self._preparing[request_id] = True
        self.engine.abort(request_id)

    async def stats(self) -> Stats:
        return await self.engine.stats()

    async def sleep(self, level: int = 1) -> None:
        await self.engine.sleep(level)

    async def wakeup(self, tags: tuple[str, ...] = ()) -> None:
        await self.engine.wakeup(tags)

    async def close(self) -> None:
        await self.engine.close()
        self._parts.codec.close()
        if self._parts.grammars is not None:
            self._parts.grammars.close()

    async def _prepare(self, request: TextRequest) -> tuple[Request, Answer]:
        parts, vocabulary = self._parts, self._parts.codec.tokenizer.vocabulary
        tools = chosen_tools(request, parts.parsers.tools is not None)
        request = constrained(request, tools, parts.parsers)
        written = await parts.codec.write(request, tools)
        try:
            stops = stops_of(request, parts.end, vocabulary)
            wish = replace(
                engine_request(request, written.ids, stops, self.limits),
                media=written.media, thinking=thinking_of(request, parts.parsers, vocabulary),
            )
            await self._check_grammar(request)
            parsers = parsers_for(parts.parsers, request, vocabulary) if request.chat else Parsers()
            return wish, Answer(request, written.ids, vocabulary, stops, parsers)
        except BaseException:
            parts.codec.release(written.media)
            raise

    async def _check_grammar(self, request: TextRequest) -> None:
        if request.grammar is None:
            return
        if self._parts.grammars is None:
            raise RequestError("this model is served without grammars", 501, param="response_format")
        try:
            await self._parts.grammars.check(request.grammar)
        except RequestError as error:
            raise for_tools(error) if request.grammar.kind == TOOL_CALLS else error from None


async def _close(stream: AsyncIterator[object]) -> None:
    aclose = getattr(stream, "aclose", None)
    if aclose is not None:
        await aclose()
