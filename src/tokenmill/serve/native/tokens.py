"""Text to ids and back: POST /v1/encode, /tokenize, /detokenize; GET /tokenizer_info."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from tokenmill.errors import RequestError
from tokenmill.serve.http.body import read_json
from tokenmill.serve.http.service import Service, service_of
from tokenmill.serve.native.schema import DetokenizeRequest, EncodeRequest, TokenizeRequest
from tokenmill.serve.openai.convert import check_ids, check_model, plain_message
from tokenmill.serve.openai.describe import body_of
from tokenmill.types import TextRequest

router = APIRouter(tags=["native"])


@router.post("/v1/encode", summary="Ids of texts", openapi_extra=body_of(EncodeRequest))
async def encode(request: Request) -> Response:
    service = service_of(request)
    body, unknown = await read_json(request, EncodeRequest)
    service.metrics.unknown_fields.inc(unknown)
    texts = [body.input] if isinstance(body.input, str) else body.input
    ids = [list(await _encode(service, text, body)) for text in texts]
    if isinstance(body.input, str):
        return JSONResponse({"input_ids": ids[0], "length": len(ids[0])})
    return JSONResponse({"input_ids": ids, "length": [len(one) for one in ids]})


async def _encode(service: Service, text: str, body: EncodeRequest) -> tuple[int, ...]:
    codec = service.engine.codec
    if body.do_preprocess:
        return await codec.prompt_ids(TextRequest("encode", ({"role": "user", "content": text},)), ())
    return await codec.encode(text, body.add_bos)


@router.post("/tokenize", summary="Ids of a text or a conversation", openapi_extra=body_of(TokenizeRequest))
async def tokenize(request: Request) -> Response:
    service = service_of(request)
    body, unknown = await read_json(request, TokenizeRequest)
    service.metrics.unknown_fields.inc(unknown)
    if body.model is not None:
        check_model(body.model, service.engine)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("send exactly one of prompt and messages", 400, param="prompt")
    codec = service.engine.codec
    if body.messages is None:
        ids = await codec.encode(body.prompt or "", body.add_special_tokens)
    else:
        messages = tuple(plain_message(message, service.engine.limits) for message in body.messages)
        ids = await codec.prompt_ids(TextRequest("tokenize", messages), ())
    most = service.engine.limits.max_model_tokens
    return JSONResponse({"tokens": list(ids), "count": len(ids), "max_model_len": most})


@router.post("/detokenize", summary="Text of ids", openapi_extra=body_of(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    service = service_of(request)
    body, unknown = await read_json(request, DetokenizeRequest)
    service.metrics.unknown_fields.inc(unknown)
    if body.model is not None:
        check_model(body.model, service.engine)
    ids = tuple(body.tokens)
    if ids:
        check_ids(ids, service.engine.limits)
    return JSONResponse({"prompt": await service.engine.codec.decode(ids, body.skip_special_tokens)})


@router.get("/tokenizer_info", summary="Size of the vocabulary, length of the context")
async def tokenizer_info(request: Request) -> Response:
    limits = service_of(request).engine.limits
    return JSONResponse({"vocab_size": limits.vocab_size, "max_model_len": limits.max_model_tokens})
