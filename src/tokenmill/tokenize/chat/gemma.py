"""Gemma: turns between start_of_turn and end_of_turn; the answering role is `model`."""

from __future__ import annotations

from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="gemma",
    user="<start_of_turn>user\n",
    eoh="<end_of_turn>\n",
    assistant="<start_of_turn>model\n",
    eoa="<end_of_turn>",
    separator="\n",
    stop_words=("<end_of_turn>",),
)
