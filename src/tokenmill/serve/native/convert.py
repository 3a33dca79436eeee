"""Native bodies as TextRequests, through the checks of the completions endpoint."""

from __future__ import annotations

import time
import uuid
from typing import Any

from pydantic import ValidationError

from tokenmill.api.contract import TextEngine
from tokenmill.serve.http.errors import from_validation
from tokenmill.serve.http.options import ServerOptions
from tokenmill.serve.http.service import Job
from tokenmill.serve.openai.convert import check_ids, check_model, completion_job
from tokenmill.serve.openai.schema import CompletionRequest, Generation
from tokenmill.types import TextRequest, Want

_SHARED = tuple(name for name in Generation.model_fields if name not in ("model", "stop", "stream", "stream_options"))


def completion_of(body: Generation, engine: TextEngine, fields: dict[str, Any]) -> CompletionRequest:
    """The same sampling fields, and `fields`, as a completion request."""
    shared = {name: getattr(body, name) for name in _SHARED}
    try:
        return CompletionRequest.model_validate({**shared, "model": body.model or engine.name, **fields})
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False, include_input=False)) from None


def one_job(
    body: CompletionRequest, engine: TextEngine, options: ServerOptions, timeout_s: float | None
) -> tuple[Job, TextRequest]:
    """A job of one choice, and that choice."""
    job = completion_job(body, engine, options, timeout_s)
    return job, job.requests[0]


def scoring_job(
    prompts: tuple[Any, ...], engine: TextEngine, model: str | None, want: Want, timeout_s: float | None
) -> Job:
    """Runs prompts and draws nothing: what is wanted comes with each prompt's one output."""
    if model is not None:
        check_model(model, engine)
    for prompt in prompts:
        if not isinstance(prompt, str):
            check_ids(prompt, engine.limits)
    head = f"score-{uuid.uuid4().hex}"
    requests = tuple(
        TextRequest(
            id=f"{head}-{place}", prompt=prompt, chat=False, max_new_tokens=0, want=want,
            prompt_logprobs=bool(want & Want.PROMPT_LOGPROBS), timeout_s=timeout_s,
        )
        for place, prompt in enumerate(prompts)
    )
    return Job(head, engine.name, int(time.time()), requests)
