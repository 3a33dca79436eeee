"""InternVL2-4B as its authors' `chat` writes it: Phi-3's turns without newlines behind them."""

from __future__ import annotations

from tokenmill.tokenize.chat.internvl2_internlm2 import SYSTEM_TEXT
from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="internvl2-phi3",
    system="<|system|>\n",
    meta_instruction=SYSTEM_TEXT,
    eosys="<|end|>",
    user="<|user|>\n",
    eoh="<|end|>",
    assistant="<|assistant|>\n",
    eoa="<|end|>",
    stop_words=("<|end|>",),
)
