"""One answer: engine outputs in, text chunks out. Pure state, no I/O; `session.py` drives it.

Tokens pass one by one through detokenizer, stop strings, reasoning and tool parsers, so that the result does not depend
on how the engine groups its outputs. A stop string ends the answer at the token that completes it: later tokens of the
same output are dropped and usage counts up to that token. The token of a stop id is neither text nor among the chunk's
ids unless `include_stop`; usage counts it, as the model did draw it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tokenmill.api.prepare import Stops
from tokenmill.parse.events import Event, Parser, ReasoningEvent, ReasoningReader, TextEvent, ToolCallEvent
from tokenmill.parse.stops import StopStrings
from tokenmill.tokenize.detok import Detokenizer
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.types import (
    Chunk,
    Finish,
    StepOutput,
    TextLogprob,
    TextRequest,
    TokenLogprobs,
    ToolCallDelta,
)


@dataclass(frozen=True)
class Parsers:
    """What reads the answer's text; None leaves it as it is. `keep_ids`: special tokens that parsers need to see."""

    reasoning: ReasoningReader | None = None
    tools: Parser | None = None
    keep_ids: frozenset[int] = frozenset()


class Answer:
    """State of one request's answer."""

    def __init__(
        self, request: TextRequest, prompt_ids: tuple[int, ...], vocabulary: Vocabulary, stops: Stops, parsers: Parsers
    ) -> None:
        self._request = request
        self._prompt_ids: tuple[int, ...] | None = prompt_ids
        self._vocabulary = vocabulary
        self._stop_texts = stops.by_id
        self._parsers = parsers
        self._stops = StopStrings(stops.strings, request.include_stop)
        self._detokenizer = Detokenizer(
            vocabulary,
            skip_special_tokens=request.skip_special_tokens,
            keep_ids=parsers.keep_ids,
            continues=True,
        )
        self._drawn = 0
        self._num_calls = 0
        self._reasoned = 0
        self._ids: list[int] = []
        self._logprobs: list[TextLogprob] = []

    def feed(self, output: StepOutput) -> Chunk | None:
        """The chunk this output completes; None where nothing can be shown yet."""
        pieces, stop = self._read(output)
        finish, reason = output.finish, self._reason(output)
        usage = output.usage
        if stop is not None:
            finish, reason = Finish.STOP, stop
            usage = replace(usage, completion_tokens=self._drawn)
        events = self._parse(pieces, last=finish is not None)
        if self._reasoned:
            usage = replace(usage, reasoning_tokens=min(self._reasoned, usage.completion_tokens))
        first = self._prompt_ids is not None
        if not events and finish is None and not first and not output.arrays:
            return None
        chunk = Chunk(
            text="".join(e.text for e in events if isinstance(e, TextEvent)),
            token_ids=tuple(self._ids),
            finish=finish,
            stop_reason=reason,
            error=output.error,
            reasoning="".join(e.text for e in events if isinstance(e, ReasoningEvent)),
            tool_calls=tuple(self._calls(events)),
            logprobs=tuple(self._logprobs),
            prompt_ids=self._prompt_ids,
            prompt_logprobs=self._prompt_logprobs(output),
            arrays=output.arrays,
            usage=usage,
        )
        self._ids, self._logprobs, self._prompt_ids = [], [], None
        return chunk

    def _read(self, output: StepOutput) -> tuple[list[str], str | None]:
        """The text that may be shown, a piece a token, and the stop string that ended it."""
        pieces: list[str] = []
        for index, token in enumerate(output.token_ids):
            self._drawn += 1
            ends = output.stop_token_id is not None and index == len(output.token_ids) - 1
            logprob = output.logprobs[index] if index < len(output.logprobs) else None
            if ends and not self._request.include_stop:
                if logprob is not None and self._request.stop_logprob:
                    self._logprobs.append(self._text_logprob(logprob))
                break
            self._keep(token, logprob)
            piece = self._piece(token, ends)
            # As the engine keeps stop ids back before min_new_tokens, stop strings are not looked for there.
            if self._drawn <= self._request.min_new_tokens:
                pieces.append(piece)
                continue
            found = self._stops.feed(piece)
            pieces.append(found.text)
            if found.stop is not None:
                return pieces, found.stop
        if output.finish is not None:
            # Bytes left in the detokenizer are half a character, which is never shown.
            pieces.append(self._stops.finish())
        return pieces, None

    def _piece(self, token: int, ends: bool) -> str:
        if ends:
            # A stop token that is to be shown is shown even where special tokens are skipped.
            return self._vocabulary.token_text(token)
        return self._detokenizer.feed(token)

    def _keep(self, token: int, logprob: TokenLogprobs | None) -> None:
        self._ids.append(token)
        if logprob is not None and self._request.logprobs:
            self._logprobs.append(self._text_logprob(logprob))

    def _reason(self, output: StepOutput) -> str | int | None:
        token = output.stop_token_id
        return None if token is None else self._stop_texts.get(token, token)

    def _parse(self, pieces: Sequence[str], last: bool) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            if self._parsers.reasoning is not None and self._parsers.reasoning.thinking:
                self._reasoned += 1
            events += self._understood(piece, last=False)
        return events + self._understood("", last=True) if last else events

    def _understood(self, text: str, last: bool) -> list[Event]:
        events: list[Event] = [TextEvent(text)] if text else []
        for parser in (self._parsers.reasoning, self._parsers.tools):
            if parser is not None:
                events = _through(parser, events, last)
        return events

    def _calls(self, events: Sequence[Event]) -> Iterator[ToolCallDelta]:
        """The calls among the events, only the answer's first where one is all that is wanted."""
        for event in events:
            if not isinstance(event, ToolCallEvent) or (self._num_calls and not self._request.parallel_tool_calls):
                continue
            self._num_calls += 1
            yield ToolCallDelta(self._num_calls - 1, f"call_{uuid.uuid4().hex[:24]}", event.name, event.arguments)

    def _prompt_logprobs(self, output: StepOutput) -> tuple[TextLogprob | None, ...] | None:
        if output.prompt_logprobs is None:
            return None
        return tuple(None if entry is None else self._text_logprob(entry) for entry in output.prompt_logprobs)

    def _text_logprob(self, entry: TokenLogprobs) -> TextLogprob:
        top = tuple(self._one(token, logprob) for token, logprob in entry.top)
        return replace(self._one(entry.token_id, entry.logprob), top=top)

    def _one(self, token: int, logprob: float) -> TextLogprob:
        data = self._vocabulary.token_bytes(token)
        return TextLogprob(data.decode("utf-8", "replace"), data, token, logprob)


def _through(parser: Parser, events: Sequence[Event], last: bool) -> list[Event]:
    passed: list[Event] = []
    for event in events:
        passed += parser.feed(event.text) if isinstance(event, TextEvent) else [event]
    return passed + parser.finish() if last else passed
