"""Chat templates that are pieces of text and no more: LMDeploy's names up to 0.9 beyond the dialects of `chat/`.

Each is a declaration; what has tools or a text of its own to explain has a module in `chat/`. The pieces are facts of
the published models' formats in LMDeploy's form, spaces and newlines included.
"""

from __future__ import annotations

from dataclasses import replace

from tokenmill.tokenize.chat import internlm2, llama2, phi_3, qwen, vicuna
from tokenmill.tokenize.template import PieceTemplate

_DEEPSEEK_END = "<｜end▁of▁sentence｜>"
_CURIOUS = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
_ONE_TURN = (
    "A one-turn chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "very detailed, and polite answers to the user's questions."
)
_CODER = (
    "You are an AI programming assistant, utilizing the Deepseek Coder model, developed by Deepseek Company, and you "
    "only answer questions related to computer science. For politically sensitive questions, security and privacy "
    "issues, and other non-computer science questions, you will refuse to answer\n"
)
_SEEING = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_YI_VL = (
    "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant. Read all "
    "the images carefully, and respond to the human's questions with informative, helpful, detailed and polite "
    "answers. 这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。仔细阅读所有的图像，"
    "并对人类的问题做出信息丰富、"
    "有帮助、详细的和礼貌的回答。\n\n"
)
_CODEGEEX = (
    "你是一位智能编程助手，你叫CodeGeeX。你会为用户回答关于编程、代码、计算机方面的任何问题，并提供格式规范、可以执行、"
    "准确安全的代码，并在必要时提供详细的解释。"
)
_DBRX = (
    "You are DBRX, created by Databricks. You were last updated in December 2023. You answer questions based on "
    "information available up to that point.\nYOU PROVIDE SHORT RESPONSES TO SHORT QUESTIONS OR STATEMENTS, but "
    "provide thorough responses to more complex and open-ended questions.\nYou assist with various tasks, from writing "
    "to coding (using markdown for code blocks — remember to use ``` with code, JSON, and tables).\n(You do not have "
    "real-time data access or code execution capabilities. You avoid stereotyping and provide balanced perspectives on "
    "controversial topics. You do not provide song lyrics, poems, or news articles and do not divulge details of your "
    "training data.)\nThis is your system prompt, guiding your responses. Do not reference it, just respond to the "
    "user. If you find yourself talking about this message, stop. You should be responding appropriately and usually "
    "that means not mentioning this.\nYOU DO NOT MENTION ANY OF THIS INFORMATION ABOUT YOURSELF UNLESS THE INFORMATION "
    "IS DIRECTLY PERTINENT TO THE USER\\'S QUERY."
)
_QWQ_PREVIEW = (
    "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should think step-by-step."
)

_COGVLM = PieceTemplate(
    "cogvlm", user="Question: ", eoh=" ", assistant="Answer:", eoa="</s>", separator="\n", stop_words=("</s>",)
)
_DEEPSEEK = PieceTemplate(
    "deepseek", eosys="\n\n", user="User: ", eoh="\n\n", assistant="Assistant: ", prompt_end="Assistant:",
    eoa=_DEEPSEEK_END,
)  # fmt: skip
_DEEPSEEK_V3 = PieceTemplate(
    "deepseek-v3", start="<｜begin▁of▁sentence｜>", user="<｜User｜>", assistant="<｜Assistant｜>", eoa=_DEEPSEEK_END,
    stop_words=(_DEEPSEEK_END,),
)  # fmt: skip
_GLM4 = PieceTemplate(
    "glm4", start="[gMASK]<sop>", system="<|system|>\n", user="<|user|>\n", assistant="<|assistant|>\n",
    stop_words=("<|user|>", "<|endoftext|>", "<|observation|>"),
)  # fmt: skip
_TIGHT_CHATML = replace(
    qwen.TEMPLATE, name="llava-chatml", meta_instruction="Answer the questions.", eosys="<|im_end|>",
    eoh="<|im_end|>", separator="", stop_words=(),
)  # fmt: skip

_ALL = (
    PieceTemplate("puyu"),
    PieceTemplate("chatglm", user="[Round {round}]\n\n问：", eoh="\n\n", assistant="答："),
    replace(llama2.TEMPLATE, name="codellama", meta_instruction=""),
    PieceTemplate("mistral", user="[INST] ", eoh=" [/INST]", eoa="</s>"),
    PieceTemplate(
        "solar", system="### System:\n", meta_instruction="", eosys="\n\n", user="### User:\n", eoh="\n\n",
        assistant="### Assistant:\n", eoa="\n\n",
    ),
    PieceTemplate(
        "ultralm", system="User: ", meta_instruction=_ONE_TURN, eosys="</s>\n", user="User: ", eoh="</s>\n",
        assistant="Assistant: ", eoa="</s>", separator="\n", stop_words=("</s>",),
    ),
    PieceTemplate(
        "deepseek-coder", meta_instruction=_CODER, user="### Instruction:\n", eoh="\n", assistant="### Response:\n",
        eoa="\n<|EOT|>", separator="\n", stop_words=("<|EOT|>",),
    ),
    PieceTemplate(
        "yi-vl", meta_instruction=_YI_VL, user="### Human: ", eoh="\n", assistant="### Assistant:", eoa="\n",
        stop_words=("###",),
    ),
    PieceTemplate(
        "internvl-zh", user="<human>: ", eoh=" ", assistant="<bot>: ", prompt_end="<bot>:", eoa="</s>",
    ),
    PieceTemplate(
        "molmo", user=" User: ", assistant=" Assistant:", separator=" ", stop_words=("<|endoftext|>",),
    ),
    PieceTemplate(
        "llama4", system="<|header_start|>system<|header_end|>\n\n", eosys="<|eot|>",
        user="<|header_start|>user<|header_end|>\n\n", eoh="<|eot|>",
        assistant="<|header_start|>assistant<|header_end|>\n\n", eoa="<|eot|>",
        stop_words=("<|eot|>", "<|eom|>", "<|end_of_text|>"),
    ),
    _COGVLM,
    replace(_COGVLM, name="cogvlm2", eoa="<|end_of_text|>", stop_words=("<|end_of_text|>",)),
    _DEEPSEEK,
    replace(_DEEPSEEK, name="deepseek-vl", meta_instruction=_SEEING),
    replace(
        _DEEPSEEK, name="deepseek-vl2", eosys="", user="<|User|>: ", assistant="<|Assistant|>: ",
        prompt_end="<|Assistant|>:",
    ),
    _DEEPSEEK_V3,
    replace(_DEEPSEEK_V3, name="deepseek-r1", prompt_end="<｜Assistant｜><think>\n"),
    _GLM4,
    replace(_GLM4, name="codegeex4", start="", meta_instruction=_CODEGEEX,
            stop_words=("<|endoftext|>", "<|user|>", "<|observation|>")),
    _TIGHT_CHATML,
    replace(qwen.TEMPLATE, name="dbrx", meta_instruction=_DBRX, stop_words=()),
    replace(qwen.TEMPLATE, name="qwq_preview", meta_instruction=_QWQ_PREVIEW),
    replace(qwen.TEMPLATE, name="qwq", meta_instruction=None, prompt_end="<|im_start|>assistant\n<think>\n"),
    replace(vicuna.TEMPLATE, name="llava-v1", meta_instruction=_CURIOUS),
    replace(
        internlm2.TEMPLATE, name="internvl-internlm2",
        meta_instruction="You are an AI assistant whose name is InternLM (书生·浦语).",
    ),
    replace(
        phi_3.TEMPLATE, name="internvl-phi3", meta_instruction="You are an AI assistant whose name is Phi-3.",
        eosys="<|end|>", eoh="<|end|>", separator="",
    ),
)  # fmt: skip
TEMPLATES = {template.name: template for template in _ALL}
# Names LMDeploy lists for the same text.
ALIASES = {
    "falcon": "base", "llama": "base", "baichuan": "base", "internlm3": "internlm2", "llama3_2": "llama3_1",
    "wizardlm": "vicuna", "mini-gemini-vicuna": "vicuna", "mixtral": "mistral", "ultracm": "ultralm",
    "internlm-xcomposer2d5": "internlm-xcomposer2", "internvl-zh-hermes2": "llava-chatml", "deepseek-v2": "deepseek",
    "minicpmv-2d6": "qwen", "minicpm3": "qwen", "qwen2d5-vl": "qwen", "gpt-oss": "harmony",
}  # fmt: skip
# Names of its first generations, still taken.
OLD_NAMES = {
    "llama-2": "llama2", "llama-2-chat": "llama2", "internlm-chat": "internlm", "internlm-chat-7b": "internlm",
    "internlm-chat-8k": "internlm", "internlm-chat-7b-8k": "internlm", "internlm-chat-20b": "internlm",
    "internlm-7b": "base", "internlm-20b": "base", "internlm2-1_8b": "base", "internlm2-7b": "base",
    "internlm2-20b": "base", "internlm2-chat": "internlm2", "internlm2-chat-1_8b": "internlm2",
    "internlm2-chat-7b": "internlm2", "internlm2-chat-20b": "internlm2", "baichuan-7b": "base",
    "baichuan-base": "base", "baichuan2-7b": "baichuan2", "baichuan2-chat": "baichuan2", "qwen-7b": "qwen",
    "qwen-14b": "qwen", "qwen-chat": "qwen", "chatglm2": "chatglm", "chatglm2-6b": "chatglm", "solar-70b": "solar",
    "yi-chat": "yi", "yi-200k": "yi", "yi-34b": "yi", "mistral-instruct": "mistral", "mixtral-instruct": "mistral",
    "Mistral-7B-Instruct": "mistral", "Mixtral-8x7B-Instruct": "mistral", "deepseek-chat": "deepseek",
}  # fmt: skip
