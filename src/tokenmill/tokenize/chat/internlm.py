"""InternLM v1 (December 2023 form, v1.1): tagged turns that end with `<eoa>`."""

from __future__ import annotations

from tokenmill.tokenize.chat.internlm2 import SYSTEM_TEXT
from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="internlm",
    system="<|System|>:",
    meta_instruction=SYSTEM_TEXT + "\n",
    eosys="\n",
    user="<|User|>:",
    eoh="\n",
    assistant="<|Bot|>:",
    eoa="<eoa>",
    separator="\n",
    stop_words=("<eoa>",),
)
