"""InternVL2.5 and 3 as their authors' `chat` writes them: ChatML with a system text of their own."""

from __future__ import annotations

from tokenmill.tokenize.chat._hermes import lower_tools
from tokenmill.tokenize.template import PieceTemplate

SYSTEM_TEXT = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)

TEMPLATE = PieceTemplate(
    name="internvl2_5",
    system="<|im_start|>system\n",
    meta_instruction=SYSTEM_TEXT,
    eosys="<|im_end|>\n",
    user="<|im_start|>user\n",
    eoh="<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    eoa="<|im_end|>",
    separator="\n",
    stop_words=("<|im_end|>",),
    lower_tools=lower_tools(SYSTEM_TEXT),
)
