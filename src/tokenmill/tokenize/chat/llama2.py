"""Llama-2 chat: `[INST]` turns, the system text inside the first one."""

from __future__ import annotations

from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="llama2",
    system="[INST] <<SYS>>\n",
    meta_instruction=(
        "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. "
        "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
        "Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not "
        "make any sense, or is not factually coherent, explain why instead of answering something not correct. If you "
        "don't know the answer to a question, please don't share false information."
    ),
    eosys="\n<</SYS>>\n\n",
    assistant=" [/INST] ",
    eoa="</s>",
    separator="<s>[INST] ",
)
