"""InternVL2 as its authors' `chat` writes it (templates `internlm2-chat` and `Hermes-2`): no newline after a turn."""

from __future__ import annotations

from tokenmill.tokenize.chat.internlm2 import lower_tools
from tokenmill.tokenize.template import PieceTemplate

SYSTEM_TEXT = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)

TEMPLATE = PieceTemplate(
    name="internvl2-internlm2",
    system="<|im_start|>system\n",
    meta_instruction=SYSTEM_TEXT,
    eosys="<|im_end|>",
    user="<|im_start|>user\n",
    eoh="<|im_end|>",
    assistant="<|im_start|>assistant\n",
    eoa="<|im_end|>",
    tool="<|im_start|>environment\n",
    eotool="<|im_end|>",
    stop_words=("<|im_start|>", "<|im_end|>"),
    lower_tools=lower_tools,
)
