"""From a validated body to the TextRequests of its choices. Pure; a RequestError names field, limit and fix."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokenmill.api.contract import SamplingDefaults, TextEngine, TextLimits
from tokenmill.errors import RequestError
from tokenmill.serve.http.options import ServerOptions
from tokenmill.serve.http.service import Job
from tokenmill.serve.openai.formats import grammar_of
from tokenmill.serve.openai.refuse import refuse as _refuse
from tokenmill.serve.openai.schema import ChatMessage, ChatRequest, CompletionRequest, Generation
from tokenmill.serve.openai.tools import tools_wish
from tokenmill.types import Message, Sampling, TextRequest

TEMPLATE_OPTIONS = frozenset({"enable_thinking", "thinking", "thinking_budget", "reasoning_effort", "date_string"})


def chat_job(body: ChatRequest, engine: TextEngine, options: ServerOptions, timeout_s: float | None) -> Job:
    """One choice per `n`; with a seed, choice i draws with seed + i."""
    check_common(body, engine, options)
    if body.top_logprobs and not body.logprobs:
        raise _refuse("top_logprobs needs logprobs: true", "top_logprobs")
    prompt, chat = _chat_prompt(body, engine.limits)
    wish = tools_wish(body)
    request = replace(
        _request("chatcmpl", body, engine, timeout_s),
        prompt=prompt,
        chat=chat,
        logprobs=bool(body.logprobs or body.return_logprob),
        top_logprobs=body.top_logprobs or 0,
        tools=wish.tools,
        tool_choice=wish.choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        template_options=_template_options(body),
        thinking_budget=body.thinking_budget if body.thinking_token_budget is None else body.thinking_token_budget,
    )
    return _job(body, [request], least_tokens=1)


def completion_job(
    body: CompletionRequest, engine: TextEngine, options: ServerOptions, timeout_s: float | None
) -> Job:
    """`n` choices for every prompt, prompt by prompt. Echo with logprobs also wants the prompt's log-probabilities."""
    check_common(body, engine, options)
    if body.suffix:
        raise RequestError("suffix is not supported: the model fills no gaps; leave it out", 501, param="suffix")
    base = replace(
        _request("cmpl", body, engine, timeout_s),
        chat=False,
        logprobs=body.logprobs is not None,
        top_logprobs=body.logprobs or 0,
        prompt_logprobs=bool(body.echo) and body.logprobs is not None,
        # lm-eval takes the last entry for the one token it asks for, even where that ends the answer.
        stop_logprob=bool(body.echo),
    )
    requests = []
    for prompt in body.prompt:
        if not isinstance(prompt, str):
            check_ids(prompt, engine.limits)
        requests.append(replace(base, prompt=prompt))
    return _job(body, requests, least_tokens=0 if body.echo else 1)


def check_common(body: Generation, engine: TextEngine, options: ServerOptions) -> None:
    """What the schema cannot know: the model, the server's options, features of later issues."""
    check_model(body.model, engine)
    if (body.n or 1) > options.max_n:
        raise _refuse(f"n is {body.n}; it must be at most {options.max_n} (--max-n)", "n")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise _refuse("best_of other than n is not supported; leave it out", "best_of")
    if (body.n or 1) > 1 and _session(body) is not None:
        raise _refuse("n above 1 cannot go with a session_id", "n")
    if body.return_routed_experts:
        raise _refuse("routed experts are not returned by this server; leave it out", "return_routed_experts")
    if body.repetition_ngram_size:
        raise _refuse("repetition_ngram_size is not supported; use repetition_penalty", "repetition_ngram_size")
    if body.chat_template is not None:
        raise RequestError("a chat_template in a request is not accepted", 403, param="chat_template")


def check_model(name: str, engine: TextEngine) -> None:
    if name != engine.name:
        raise RequestError(f"The model {name[:128]!r} does not exist.", 404, param="model", code="model_not_found")


def check_ids(ids: tuple[int, ...], limits: TextLimits) -> None:
    if len(ids) > limits.max_model_tokens:
        raise RequestError(
            f"the prompt has {len(ids)} tokens; the model's context length is {limits.max_model_tokens}",
            400, param="prompt", code="context_length_exceeded",
        )
    if min(ids) < 0 or max(ids) >= limits.vocab_size:
        raise _refuse(f"token ids must lie in [0, {limits.vocab_size})", "prompt")


def _request(prefix: str, body: Generation, engine: TextEngine, timeout_s: float | None) -> TextRequest:
    min_new_tokens = body.min_new_tokens or body.min_tokens or 0
    max_new_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    most = engine.limits.max_model_tokens if max_new_tokens is None else max_new_tokens
    if min_new_tokens > most:
        raise _refuse(f"min_new_tokens is {min_new_tokens}; it must be at most {most}", "min_new_tokens")
    return TextRequest(
        id=f"{prefix}-{uuid.uuid4().hex}",
        prompt="",
        sampling=_sampling(body, engine),
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        stop_strings=tuple(body.stop),
        stop_token_ids=_stop_ids(body, engine.limits),
        ignore_eos=bool(body.ignore_eos),
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
        cache_salt=body.cache_salt or "",
        grammar=grammar_of(body.response_format),
        timeout_s=timeout_s,
    )


def _job(body: Generation, requests: Sequence[TextRequest], least_tokens: int) -> Job:
    first = requests[0]
    if first.max_new_tokens is not None and first.max_new_tokens < least_tokens:
        raise _refuse(f"max_tokens is {first.max_new_tokens}; it must be at least {least_tokens}", "max_tokens")
    choices = [
        replace(request, id=f"{request.id}-{place * (body.n or 1) + i}", sampling=_shifted(request.sampling, i))
        for place, request in enumerate(requests)
        for i in range(body.n or 1)
    ]
    return Job(first.id, body.model, int(time.time()), tuple(choices), _session(body))


def _session(body: Generation) -> int | None:
    return None if body.session_id in (None, -1) else body.session_id


def _shifted(sampling: Sampling, place: int) -> Sampling:
    """Choices of one seeded request differ, and are the same every time. Wraps within int64."""
    if sampling.seed is None or place == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + place + (1 << 63)) % (1 << 64) - (1 << 63))


def _sampling(body: Generation, engine: TextEngine) -> Sampling:
    defaults: SamplingDefaults = engine.defaults
    return Sampling(
        temperature=_first(body.temperature, defaults.temperature, 1.0),
        top_k=min(int(_first(body.top_k, defaults.top_k, 0)), engine.limits.vocab_size),
        top_p=_first(body.top_p, defaults.top_p, 1.0),
        min_p=body.min_p or 0.0,
        repetition_penalty=_first(body.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body, engine.limits),
        seed=body.seed,
    )


def _first(*values: float | None) -> float:
    return float(next(value for value in values if value is not None))


def _logit_bias(body: Generation, limits: TextLimits) -> tuple[tuple[int, float], ...]:
    pairs = []
    for key, value in (body.logit_bias or {}).items():
        token = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        if not 0 <= token < limits.vocab_size:
            raise _refuse(f"logit_bias keys are token ids in [0, {limits.vocab_size})", "logit_bias")
        pairs.append((token, float(value)))
    return tuple(pairs)


def _stop_ids(body: Generation, limits: TextLimits) -> tuple[int, ...]:
    ids = tuple(body.stop_token_ids or ())
    if ids and max(ids) >= limits.vocab_size:
        raise _refuse(f"stop_token_ids must lie in [0, {limits.vocab_size})", "stop_token_ids")
    return ids


def _chat_prompt(body: ChatRequest, limits: TextLimits) -> tuple[str | tuple[int, ...] | tuple[Message, ...], bool]:
    """A string goes to the model as it is, without the chat template, as LMDeploy has it; so do ids."""
    if body.input_ids is not None:
        if body.messages is not None:
            raise _refuse("input_ids cannot be combined with messages; leave one of them out", "input_ids")
        check_ids(tuple(body.input_ids), limits)
        return tuple(body.input_ids), False
    if body.messages is None:
        raise _refuse("messages: a conversation is needed", "messages")
    if isinstance(body.messages, str):
        return body.messages, False
    messages = tuple(plain_message(message, limits) for message in body.messages)
    if body.do_preprocess is False:
        if not all(isinstance(message["content"] or "", str) for message in messages):
            raise _refuse("images need the chat template; leave do_preprocess out", "messages")
        text = "".join(message["content"] or "" for message in messages)
        if not text:
            raise _refuse("the prompt is empty", "messages")
        return text, False
    return messages, True


def plain_message(message: ChatMessage, limits: TextLimits) -> Message:
    plain: Message = {"role": message.role, "content": _content(message, limits)}
    for name in ("name", "reasoning_content", "tool_calls", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            plain[name] = value
    return plain


def _content(message: ChatMessage, limits: TextLimits) -> str | list[Message] | None:
    """Text; a list of parts only where some are images, which api/images.py reads."""
    content = message.content
    if content is None:
        if not message.tool_calls:
            raise _refuse(f"a {message.role} message needs content", "messages")
        return None
    if isinstance(content, str):
        return content
    others = {part.type for part in content if part.type != "text"}
    if not others:
        return "\n".join(part.text or "" for part in content)
    if not limits.takes_images or others != {"image_url"}:
        kinds = "text and image_url" if limits.takes_images else "text"
        raise _refuse(f"only {kinds} content parts are supported by this model", "messages")
    return [
        {"type": "text", "text": part.text or ""} if part.type == "text"
        else {"type": "image_url", "image_url": part.image_url}
        for part in content
    ]


def _template_options(body: ChatRequest) -> dict[str, Any]:
    options = dict(body.chat_template_kwargs or {})
    for name, value in options.items():
        if name not in TEMPLATE_OPTIONS:
            allowed = ", ".join(sorted(TEMPLATE_OPTIONS))
            raise _refuse(f"chat_template_kwargs may hold {allowed} only", "chat_template_kwargs")
        scalar = value is None or isinstance(value, str | bool | int | float)
        if not scalar or (isinstance(value, float) and not math.isfinite(value)):
            raise _refuse("chat_template_kwargs values must be strings, numbers or booleans", "chat_template_kwargs")
    if body.enable_thinking is not None:
        options.setdefault("enable_thinking", body.enable_thinking)
    if body.reasoning_effort is not None:
        options.setdefault("reasoning_effort", body.reasoning_effort)
    return options
