"""ChatGLM3: role marks, each followed by newline and space."""

from __future__ import annotations

from tokenmill.tokenize.template import PieceTemplate

TEMPLATE = PieceTemplate(
    name="chatglm3",
    start="[gMASK]sop",
    system="<|system|>\n ",
    user="<|user|>\n ",
    assistant="<|assistant|>\n ",
    stop_words=("<eos>",),
)
