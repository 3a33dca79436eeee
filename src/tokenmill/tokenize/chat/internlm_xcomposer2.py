"""InternLM-XComposer2: InternLM2's turns by the tokenizer's own names of its turn marks."""

from __future__ import annotations

from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="internlm-xcomposer2",
    system="[UNUSED_TOKEN_146]system\n",
    eosys="[UNUSED_TOKEN_145]\n",
    user="[UNUSED_TOKEN_146]user\n",
    eoh="[UNUSED_TOKEN_145]\n",
    assistant="[UNUSED_TOKEN_146]assistant\n",
    eoa="[UNUSED_TOKEN_145]\n",
    separator="\n",
    stop_words=("[UNUSED_TOKEN_145]",),
)
