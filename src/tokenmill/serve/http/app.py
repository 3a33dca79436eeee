"""The application: routes, layers, documentation. Layers are plain ASGI, outermost first: CORS (where asked for),
transport limits, keys, gate. Nothing here buffers a body or hides a disconnect.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from tokenmill import __version__
from tokenmill.serve.anthropic import count as anthropic_count
from tokenmill.serve.anthropic import messages as anthropic_messages
from tokenmill.serve.anthropic import models as anthropic_models
from tokenmill.serve.anthropic.schema import CountRequest, MessagesRequest
from tokenmill.serve.http import admin, docs, errors, health, prometheus
from tokenmill.serve.http.auth import AuthLayer, KeyRing
from tokenmill.serve.http.gate import GateLayer
from tokenmill.serve.http.service import Service
from tokenmill.serve.http.transport import TransportLayer
from tokenmill.serve.native import generate, interactive, later, pooling, ppl, rerank, tokens
from tokenmill.serve.native.schema import (
    DetokenizeRequest,
    EncodeRequest,
    GenerateRequest,
    InteractiveRequest,
    PoolingRequest,
    PplRequest,
    RerankRequest,
    TokenizeRequest,
)
from tokenmill.serve.openai import chat, completions, models
from tokenmill.serve.openai.schema import ChatRequest, CompletionRequest
from tokenmill.serve.responses import endpoint as responses
from tokenmill.serve.responses.schema import ResponsesRequest

ENDPOINTS = (models, chat, completions, responses, anthropic_messages, anthropic_count, anthropic_models, generate,
             interactive, pooling, rerank, ppl, tokens, later, health)  # fmt: skip
SCHEMAS = (
    ChatRequest, CompletionRequest, ResponsesRequest, MessagesRequest, CountRequest, GenerateRequest,
    InteractiveRequest, PoolingRequest, RerankRequest, PplRequest, EncodeRequest, TokenizeRequest, DetokenizeRequest,
)  # fmt: skip


def build_app(service: Service) -> FastAPI:
    """The server's ASGI application on `service`, which may still be loading."""
    options = service.options
    app = FastAPI(
        title="Tokenmill",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if options.docs else None,
        # A redirect would be built from the Host header.
        redirect_slashes=False,
    )
    app.state.service = service
    errors.install(app)
    for endpoint in ENDPOINTS:
        app.include_router(endpoint.router)
    app.include_router(admin.router(options.admin_routes))
    app.include_router(docs.chat_router)
    if options.metrics:
        app.include_router(prometheus.router)
    if options.docs:
        app.include_router(docs.router)
        _add_schemas(app)
    _add_layers(app, service)
    return app


def _add_layers(app: FastAPI, service: Service) -> None:
    """Added inside out: the last one added sees a request first."""
    options = service.options
    app.add_middleware(GateLayer, service=service)
    app.add_middleware(AuthLayer, keys=KeyRing(options.api_keys))
    app.add_middleware(TransportLayer, limits=options.limits)
    if options.cors.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors.origins,
            allow_methods=options.cors.methods,
            allow_headers=options.cors.headers,
            allow_credentials=options.cors.credentials,
        )


def _add_schemas(app: FastAPI) -> None:
    """Bodies are read by our own strict reader, so their schemas are put into the document by hand."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in SCHEMAS:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        return document

    app.openapi = openapi  # type: ignore[method-assign]
