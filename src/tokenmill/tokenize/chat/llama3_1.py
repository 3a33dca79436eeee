"""Llama-3.1 and 3.2: Llama-3 with dates before the system text, which is always there."""

from __future__ import annotations

from dataclasses import replace

from tokenmill.tokenize.chat import llama3

TEMPLATE = replace(
    llama3.TEMPLATE,
    name="llama3_1",
    system=llama3.TEMPLATE.system + "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
    meta_instruction="You are a helpful assistant.",
    stop_words=("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
)
