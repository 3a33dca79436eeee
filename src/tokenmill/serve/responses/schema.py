"""What `/v1/responses` accepts. The server keeps no conversations: fields that ask for it are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from tokenmill.serve.openai.schema import INT64_MAX, Model, Name

STATEFUL = ("background", "context_management", "conversation", "previous_response_id", "prompt")


def _shape(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


class Item(Model):
    """A message, a function call of an earlier turn, or its result; read in convert.py by its type."""

    type: Annotated[str, Field(max_length=64)] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[dict[str, Any]] | None = None
    call_id: Name | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    arguments: str | None = None
    output: str | list[dict[str, Any]] | None = None


Input = Annotated[
    Annotated[str, Field(min_length=1), Tag("<text>")]
    | Annotated[list[Item], Field(min_length=1, max_length=4096), Tag("<list>")],
    Discriminator(_shape),
]


class Reasoning(Model):
    effort: Literal["none", "minimal", "low", "medium", "high", "max"] | None = None


class TextOptions(Model):
    format: dict[str, Any] | None = None


class ResponsesRequest(Model):
    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: Input
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    user: Name | None = None
    background: bool | None = None
    context_management: Any = None
    conversation: Any = None
    previous_response_id: str | None = None
    prompt: Any = None
