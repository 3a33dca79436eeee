"""Qwen v1, Qwen1.5 and Qwen2: ChatML."""

from __future__ import annotations

from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="qwen",
    system="<|im_start|>system\n",
    meta_instruction="You are a helpful assistant.",
    eosys="<|im_end|>\n",
    user="<|im_start|>user\n",
    eoh="<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    eoa="<|im_end|>",
    separator="\n",
    stop_words=("<|im_end|>",),
)
