"""Takes work only while there is an engine to do it, and counts what is under way. A pure ASGI layer."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from tokenmill.errors import RequestError
from tokenmill.serve.http.errors import error_response
from tokenmill.serve.http.service import Phase, Service

# Answered in every phase: they tell about the server, not about the model.
ALWAYS = frozenset(
    {
        "/", "/docs", "/redoc", "/ui", "/openapi.json", "/metrics", "/version",
        "/health", "/health/live", "/health/ready",
    }
)  # fmt: skip

# Answered while the model sleeps: what steers the server, and what needs no more of a model than its text side.
SLEEPING = frozenset(
    {
        "/sleep", "/wakeup", "/is_sleeping", "/abort_request", "/terminate", "/v1/models", "/anthropic/v1/models",
        "/v1/messages/count_tokens", "/v1/encode", "/tokenize", "/detokenize", "/tokenizer_info",
    }
)  # fmt: skip


class GateLayer:
    """503 while loading, asleep or draining; 429 for new work while the queue is full, before its body is read."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope) or self._queue_refusal(scope)
        if refusal is not None:
            await error_response(refusal, {"Connection": "close"})(scope, receive, send)
            return
        self.service.in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.service.in_flight -= 1

    def _refusal(self, scope: Scope) -> RequestError | None:
        answered = self.service.phase is Phase.SLEEPING and scope["path"] in SLEEPING
        return None if answered else self.service.refusal()

    def _queue_refusal(self, scope: Scope) -> RequestError | None:
        admission = self.service.admission
        if scope["method"] != "POST" or admission is None or not admission.full:
            return None
        return RequestError(
            f"{admission.waiting} requests are waiting already; try again later", 429, code="queue_full"
        )
