"""What `/v1/messages` and `/v1/messages/count_tokens` accept. Blocks are read in convert.py, kind by kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from tokenmill.serve.openai.schema import INT64_MAX, Model

MAX_BLOCKS = 1024


def _shape(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


class Block(Model):
    """One block of any kind; which fields a kind needs is checked when it is read."""

    type: Annotated[str, Field(max_length=64)]
    text: str | None = None
    thinking: str | None = None
    id: Annotated[str, Field(max_length=128)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Annotated[str, Field(max_length=128)] | None = None
    content: Any = None
    source: dict[str, Any] | None = None
    is_error: bool | None = None


Blocks = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Block], Field(max_length=MAX_BLOCKS), Tag("<list>")],
    Discriminator(_shape),
]


class InputMessage(Model):
    role: Literal["user", "assistant", "system"]
    content: Blocks


class Tool(Model):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class ToolChoice(Model):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Model):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None


class CountRequest(Model):
    model: Annotated[str, Field(min_length=1, max_length=512)]
    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=4096)]
    system: Blocks | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None


class MessagesRequest(CountRequest):
    max_tokens: Annotated[int, Field(ge=1, le=INT64_MAX)]
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=256)]] | None = Field(None, max_length=16)
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
