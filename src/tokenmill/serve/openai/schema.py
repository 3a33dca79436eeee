"""What `/v1/chat/completions` and `/v1/completions` accept. Strict types, every number and list bounded.

Bounds that need the model (vocabulary, context) or the server's options (`--max-n`) are checked in convert.py. Unknown
fields are ignored, as clients of every generation send some. False and null as `stop` mean none.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

INT64_MAX = (1 << 63) - 1
MAX_PROMPTS = 64
MAX_STOPS = 16

def _plain(value: str) -> str:
    if not (value.isascii() and (value.isprintable() or not value)):
        raise ValueError("only printable ASCII characters are accepted, as such names go into keys and logs; encode it")
    return value


Name = Annotated[str, Field(max_length=128), AfterValidator(_plain)]


class Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


def _no_stop(value: Any) -> Any:
    if value is None or value is False:
        return []
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_no_stop, json_schema_input_type=str | list[str] | bool | None),
]


class StreamOptions(Model):
    include_usage: bool = False


class Generation(Model):
    """Fields of both endpoints. None means: as the model's generation_config.json says, else the neutral value."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=300)
    n: Annotated[int, Field(ge=1)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    stop: Stops = []
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(None, max_length=128)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    session_id: Annotated[int, Field(ge=-1, le=INT64_MAX)] | None = None
    user: Name | None = None
    cache_salt: Name | None = None
    chat_template: str | None = None
    response_format: dict[str, Any] | None = None
    return_token_ids: bool | None = None
    return_routed_experts: bool | None = None
    repetition_ngram_size: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    repetition_ngram_threshold: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None


def _shape(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


class ContentPart(Model):
    type: Annotated[str, Field(max_length=64)]
    text: str | None = None
    image_url: dict[str, Any] | str | None = None


Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[ContentPart], Field(min_length=1, max_length=1024), Tag("<list>")],
    Discriminator(_shape),
]


class ChatMessage(Model):
    role: Literal["system", "user", "assistant", "tool", "developer", "function"]
    content: Content | None = None
    name: Name | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_call_id: Name | None = None


Messages = Annotated[
    Annotated[str, Field(min_length=1), Tag("<text>")]
    | Annotated[list[ChatMessage], Field(min_length=1, max_length=4096), Tag("<list>")],
    Discriminator(_shape),
]


Budget = Annotated[int, Field(ge=0, le=INT64_MAX)]


class ChatRequest(Generation):
    """`thinking_token_budget` is vLLM's name for the most tokens of reasoning, `thinking_budget` Qwen's.

    `input_ids` stand in for messages, which are then left out, or empty as LMDeploy's clients send them.
    """

    messages: Messages | None = None
    input_ids: Annotated[list[int], Field(min_length=1)] | None = None
    return_logprob: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "max"] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, max_length=32)
    enable_thinking: bool | None = None
    thinking_token_budget: Budget | None = None
    thinking_budget: Budget | None = None
    do_preprocess: bool | None = None


    @model_validator(mode="before")
    @classmethod
    def _ids_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("input_ids") is not None and not value.get("messages"):
            return {name: item for name, item in value.items() if name != "messages"}
        return value


Prompt = str | tuple[int, ...]


def _prompts(value: Any) -> Any:
    """Every accepted form of a prompt as a tuple of strings or id tuples. Raises ValueError, which pydantic reports."""
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        value = [value]
    prompts = value if isinstance(value, list) else [value]
    if not prompts:
        raise ValueError("a prompt is needed")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"{len(prompts)} prompts; at most {MAX_PROMPTS} are accepted in one request")
    return tuple(_prompt(item) for item in prompts)


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str):
        if not value:
            raise ValueError("the prompt is empty")
        return value
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise ValueError("a prompt is a string, a list of strings, a list of token ids, or a list of such lists")
    if not value:
        raise ValueError("the prompt is empty")
    return tuple(value)


Prompts = Annotated[
    Any,
    BeforeValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]


class CompletionRequest(Generation):
    prompt: Prompts
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
