"""Llama-3: header blocks."""

from __future__ import annotations

from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="llama3",
    system="<|start_header_id|>system<|end_header_id|>\n\n",
    eosys="<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n",
    eoh="<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
    eoa="<|eot_id|>",
    stop_words=("<|eot_id|>", "<|end_of_text|>"),
)
