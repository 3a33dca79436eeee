"""Qwen2.5: ChatML with tools listed in the system text and calls between `<tool_call>` tags."""

from __future__ import annotations

from tokenmill.tokenize.chat._hermes import lower_tools
from tokenmill.tokenize.template import PieceTemplate

SYSTEM_TEXT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

TEMPLATE = PieceTemplate(
    name="qwen2d5",
    system="<|im_start|>system\n",
    meta_instruction=SYSTEM_TEXT,
    eosys="<|im_end|>\n",
    user="<|im_start|>user\n",
    eoh="<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    eoa="<|im_end|>",
    separator="\n",
    stop_words=("<|im_end|>",),
    lower_tools=lower_tools(SYSTEM_TEXT),
)
