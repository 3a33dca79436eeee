"""A text request becomes an engine request: lengths checked, stops gathered. Pure; every refusal has its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenmill.api.contract import TextLimits
from tokenmill.errors import RequestError
from tokenmill.tokenize.folder import TextFolder
from tokenmill.tokenize.template import ChatTemplate
from tokenmill.tokenize.tokenizer import Tokenizer
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.types import Message, Request, Stop, TextRequest, Want


@dataclass(frozen=True)
class EndOfText:
    """What ends an answer unless `ignore_eos`: ids, and template stop words that are no single token."""

    ids: tuple[int, ...]
    strings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stops:
    """The stops of one request. `by_id` names user strings that are whole tokens, so that the string is reported."""

    ids: tuple[int, ...]
    strings: tuple[str, ...]
    by_id: dict[int, str] = field(default_factory=dict)


def end_of_text(folder: TextFolder, tokenizer: Tokenizer, template: ChatTemplate) -> EndOfText:
    """The union of config's, generation config's and tokenizer's end ids and the template's stop words."""
    ids = list(folder.eos_ids())
    if tokenizer.vocabulary.eos_id is not None:
        ids.append(tokenizer.vocabulary.eos_id)
    strings = []
    for word in template.stop_words:
        found = _single_id(tokenizer, word)
        if found is None:
            strings.append(word)
        else:
            ids.append(found)
    return EndOfText(tuple(dict.fromkeys(ids)), tuple(strings))


def stops_of(request: TextRequest, end: EndOfText, vocabulary: Vocabulary) -> Stops:
    by_id = {}
    for text in request.stop_strings:
        token = vocabulary.token_id(text)
        if token is not None:
            by_id[token] = text
    own = (*request.stop_token_ids, *by_id)
    if request.ignore_eos:
        return Stops(tuple(dict.fromkeys(own)), request.stop_strings, by_id)
    return Stops(tuple(dict.fromkeys((*own, *end.ids))), (*request.stop_strings, *end.strings), by_id)


def chosen_tools(request: TextRequest, has_parser: bool) -> tuple[Message, ...]:
    """The tools shown to the model: none, all, or the one that `tool_choice` names."""
    if not request.tools or request.tool_choice == "none":
        return ()
    if not has_parser:
        raise RequestError(
            "this model's tool calls are not understood by the server; send no tools, or start it with "
            "--tool-call-parser", param="tools",
        )
    if request.tool_choice in ("auto", "required"):
        return request.tools
    named = tuple(t for t in request.tools if t.get("function", t).get("name") == request.tool_choice)
    if not named:
        raise RequestError(f"tool_choice names {request.tool_choice!r}, which is no tool given", param="tool_choice")
    return named


def engine_request(request: TextRequest, prompt_ids: tuple[int, ...], stops: Stops, limits: TextLimits) -> Request:
    """Raises RequestError(code context_length_exceeded) with the three numbers where the prompt leaves no room."""
    max_new = _max_new_tokens(request, len(prompt_ids), limits.max_model_tokens)
    want = request.want
    if max_new == 0:
        want &= ~Want.TOKEN
    if request.logprobs:
        want |= Want.LOGPROBS
    if request.prompt_logprobs:
        want |= Want.PROMPT_LOGPROBS
    return Request(
        id=request.id,
        prompt_ids=prompt_ids,
        sampling=request.sampling,
        stop=Stop(max_new, min(request.min_new_tokens, max_new), stops.ids),
        want=want,
        top_logprobs=request.top_logprobs,
        grammar=request.grammar,
        adapter=request.adapter,
        cache_salt=request.cache_salt,
        priority=request.priority,
        timeout_s=request.timeout_s,
    )


def _max_new_tokens(request: TextRequest, prompt_tokens: int, context: int) -> int:
    if prompt_tokens == 0:
        raise RequestError("the prompt has no tokens; send some text", param="prompt")
    asked = request.max_new_tokens
    if asked is not None and asked < 0:
        raise RequestError(f"max_new_tokens is {asked}; it must be at least 0", param="max_tokens")
    if asked is not None and request.min_new_tokens > asked:
        raise RequestError(
            f"min_new_tokens is {request.min_new_tokens}, above max_new_tokens {asked}", param="min_new_tokens"
        )
    if request.grammar is not None and request.min_new_tokens:
        raise RequestError(
            f"min_new_tokens is {request.min_new_tokens}, but a constrained answer ends where its grammar does; leave "
            "one of them out", param="min_new_tokens",
        )
    room = context - prompt_tokens
    if room < (0 if asked == 0 else 1):
        wish = "at least 1" if asked is None else str(asked)
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens and {wish} more are asked for, but the context holds {context}; "
            "shorten the prompt", param="messages" if request.chat else "prompt", code="context_length_exceeded",
        )
    return room if asked is None else min(asked, room)


def _single_id(tokenizer: Tokenizer, word: str) -> int | None:
    known = tokenizer.vocabulary.token_id(word)
    if known is not None:
        return known
    ids = tokenizer.encode(word, add_special_tokens=False)
    return ids[0] if len(ids) == 1 else None
