"""Phi-3: role marks, every turn closed by `<|end|>`."""

from __future__ import annotations

from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="phi-3",
    system="<|system|>\n",
    eosys="<|end|>\n",
    user="<|user|>\n",
    eoh="<|end|>\n",
    assistant="<|assistant|>\n",
    eoa="<|end|>",
    separator="\n",
    stop_words=("<|end|>", "<|endoftext|>", "<|assistant|>"),
)
