"""Vicuna: one paragraph of USER and ASSISTANT turns."""

from __future__ import annotations

from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="vicuna",
    meta_instruction=(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    ),
    eosys=" ",
    user="USER: ",
    eoh=" ",
    assistant="ASSISTANT: ",
    # A token never ends with the blank that the answer's first one begins with.
    prompt_end="ASSISTANT:",
    eoa="</s>",
    stop_words=("</s>",),
)
