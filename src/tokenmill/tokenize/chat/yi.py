"""Yi: ChatML without a system text of its own."""

from __future__ import annotations

from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="yi",
    system="<|im_start|>system\n",
    eosys="<|im_end|>\n",
    user="<|im_start|>user\n",
    eoh="<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    eoa="<|im_end|>",
    separator="\n",
    stop_words=("<|im_end|>", "<|endoftext|>"),
)
