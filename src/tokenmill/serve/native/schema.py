"""What the native endpoints accept. Sampling fields and their bounds are those of the OpenAI endpoints."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from tokenmill.serve.openai.schema import (
    INT64_MAX,
    MAX_PROMPTS,
    ChatMessage,
    Generation,
    Model,
    Name,
    Prompts,
)

# With the query they are as many texts as one request may hold places for.
MAX_DOCUMENTS = 255


def _shape(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


def _stop(value: Any) -> Any:
    """The first generation's `stop` is a switch; later ones' a text or a list."""
    return None if isinstance(value, bool) else value


ModelName = Annotated[str, Field(min_length=1, max_length=512)]
InteractivePrompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[ChatMessage], Field(min_length=1, max_length=4096), Tag("<list>")],
    Discriminator(_shape),
]


class GenerateRequest(Generation):
    """`/generate` since 0.10: exactly one of prompt and input_ids, no template, no model needed."""

    model: ModelName | None = None  # type: ignore[assignment]
    prompt: str | None = None
    input_ids: list[int] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = 128
    return_logprob: bool | None = None


class InteractiveRequest(Generation):
    """`/v1/chat/interactive`, and `/generate` as it was until 0.1."""

    model: ModelName | None = None  # type: ignore[assignment]
    prompt: InteractivePrompt
    interactive_mode: bool = False
    cancel: bool = False
    stop: Annotated[Any, BeforeValidator(_stop)] = None
    request_output_len: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None


class EncodeRequest(Model):
    input: Annotated[str, Tag("<text>")] | Annotated[list[str], Field(max_length=MAX_PROMPTS), Tag("<list>")] = Field(
        discriminator=Discriminator(_shape)
    )
    do_preprocess: bool = False
    add_bos: bool = True


class TokenizeRequest(Model):
    """vLLM's shape: a prompt, or messages through the chat template."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Model):
    model: ModelName | None = None
    tokens: Annotated[list[int], Field(max_length=INT64_MAX)]
    skip_special_tokens: bool = True


class PplRequest(Model):
    input: Prompts


class PoolingRequest(Model):
    model: ModelName | None = None
    input: Prompts
    encoding_format: Annotated[str, Field(pattern="^(float|base64)$")] | None = None
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    user: Name | None = None


class Document(Model):
    text: Annotated[str, Field(min_length=1)]


class RerankRequest(Model):
    model: ModelName | None = None
    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[
        list[
            Annotated[
                Annotated[str, Field(min_length=1), Tag("<text>")] | Annotated[Document, Tag("<list>")],
                Discriminator(_shape),
            ]
        ],
        Field(min_length=1, max_length=MAX_DOCUMENTS),
    ]
    top_n: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    return_documents: bool = True
