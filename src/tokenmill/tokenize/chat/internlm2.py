"""InternLM2, InternLM2.5 and InternLM3: ChatML with tools in extra messages named `<|plugin|>`.

The tool list is one line of JSON in a system message of its own behind the first; a call is
`<|action_start|><|plugin|>` + newline + {"name", "parameters"} + `<|action_end|>`; its result an `environment` message.
`lower_tools` also serves a folder's own jinja template, which writes whatever role it is given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenmill.tokenize.messages import call_of, tool_functions
from tokenmill.tokenize.template import PieceTemplate
from tokenmill.types import Message

SYSTEM_TEXT = (
    "You are an AI assistant whose name is InternLM (书生·浦语).\n"
    "- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI Laboratory "
    "(上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
    "- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the user such as "
    "English and 中文."
)
TOOL_TOKENS = ("<|action_start|>", "<|action_end|>", "<|plugin|>")


def lower_tools(messages: list[Message], tools: Sequence[Message]) -> list[Message]:
    """The same conversation with tools, calls and results written as text of plain messages."""
    lowered = [_lower(message) for message in messages]
    if tools:
        listing = {"role": "system name=<|plugin|>", "content": _json(tool_functions(tools))}
        lowered.insert(1 if lowered[0]["role"] == "system" else 0, listing)
    return lowered


def _lower(message: Message) -> Message:
    if message["role"] == "tool":
        name = "interpreter" if message.get("name") in ("interpreter", "<|interpreter|>") else "plugin"
        return {"role": f"environment name=<|{name}|>", "content": message["content"]}
    calls = message.get("tool_calls")
    if message["role"] == "assistant" and calls:
        return {"role": "assistant", "content": message["content"] + "".join(_call(call) for call in calls)}
    return {"role": message["role"], "content": message["content"]}


def _call(tool_call: Message) -> str:
    name, arguments = call_of(tool_call)
    return f"<|action_start|><|plugin|>\n{_json({'name': name, 'parameters': arguments})}<|action_end|>"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


TEMPLATE = PieceTemplate(
    name="internlm2",
    system="<|im_start|>system\n",
    # LMDeploy's constant ends with a newline that the authors' own text lacks; its prompts are what this name promises.
    meta_instruction=SYSTEM_TEXT + "\n",
    eosys="<|im_end|>\n",
    user="<|im_start|>user\n",
    eoh="<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    eoa="<|im_end|>",
    tool="<|im_start|>environment\n",
    eotool="<|im_end|>\n",
    separator="\n",
    stop_words=("<|im_end|>", "<|action_end|>"),
    other_role="<|im_start|>{role}\n",
    lower_tools=lower_tools,
)
