"""InternLM-XComposer2: InternLM2's turns by the tokenizer's own names of its turn marks."""

from __future__ import annotations

from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="internlm-xcomposer2",
    system="[UNUSED_TOKEN_146]system\n",
    meta_instruction=(
        "You are an AI assistant whose name is InternLM-XComposer (浦语·灵笔).\n"
        "- InternLM-XComposer (浦语·灵笔) is a multi-modality conversational language model that is developed by "
        "Shanghai AI Laboratory (上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
        "- InternLM-XComposer (浦语·灵笔) can understand and communicate fluently in the language chosen by the user "
        "such as English and 中文.\n"
        "- InternLM-XComposer (浦语·灵笔) is capable of comprehending and articulating responses effectively based on "
        "the provided image."
    ),
    eosys="[UNUSED_TOKEN_145]\n",
    user="[UNUSED_TOKEN_146]user\n",
    eoh="[UNUSED_TOKEN_145]\n",
    assistant="[UNUSED_TOKEN_146]assistant\n",
    eoa="[UNUSED_TOKEN_145]\n",
    separator="\n",
    stop_words=("[UNUSED_TOKEN_145]",),
)
