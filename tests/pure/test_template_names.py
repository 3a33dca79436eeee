"""LMDeploy's names of chat templates: all that its `list` printed, the text of each, and which name a model gets."""

from __future__ import annotations

import pytest

from tokenmill.errors import RequestError
from tokenmill.tokenize.builtins import ALIASES, OLD_NAMES, TEMPLATES
from tokenmill.tokenize.choose import builtin, builtin_names, is_builtin
from tokenmill.tokenize.messages import plain_messages
from tokenmill.tokenize.naming import RULES, own_name, template_of
from tokenmill.tokenize.template import PieceTemplate, TemplatePieces

# What `lmdeploy list` of 0.5 and 0.6 prints, and names added until 0.9.
LISTED_TEXT = """
    baichuan2 chatglm chatglm3 codegeex4 codellama cogvlm cogvlm2 dbrx deepseek deepseek-coder deepseek-vl falcon gemma
    glm4 internlm internlm-xcomposer2 internlm-xcomposer2d5 internlm2 internvl-internlm2 internvl-phi3 internvl-zh
    internvl-zh-hermes2 internvl2-internlm2 internvl2-phi3 llama llama2 llama3 llama3_1 llava-chatml llava-v1
    mini-gemini-vicuna mistral mixtral phi-3 puyu qwen solar ultracm ultralm vicuna wizardlm yi yi-vl
    base internlm3 internvl2_5 qwen2d5 qwen2d5-vl qwen3 llama3_2 minicpmv-2d6 minicpm3 molmo deepseek-vl2 deepseek-v3
"""
FIRST_TEXT = """
    internlm-chat-7b internlm-chat-7b-8k internlm-chat-20b qwen-7b qwen-14b llama-2-chat baichuan-7b baichuan2-7b
    chatglm2-6b codellama puyu vicuna falcon solar ultracm wizardlm yi
"""
LISTED, GENERATION_1 = LISTED_TEXT.split(), FIRST_TEXT.split()
TALK = [
    {"role": "system", "content": "S"}, {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"},
    {"role": "user", "content": "3"},
]  # fmt: skip
CHATML = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
CHATML += "<|im_start|>user\n3<|im_end|>\n<|im_start|>assistant\n"
TIGHT = CHATML.replace("<|im_end|>\n", "<|im_end|>")
PHI = "<|system|>\nS<|end|>\n<|user|>\n1<|end|>\n<|assistant|>\n2<|end|>\n<|user|>\n3<|end|>\n<|assistant|>\n"
VICUNA = "S USER: 1 ASSISTANT: 2</s>USER: 3 ASSISTANT:"
INTERN = CHATML
EXACT = {
    "base": "S123", "puyu": "S123", "llama": "S123", "falcon": "S123",
    "mistral": "S[INST] 1 [/INST]2</s>[INST] 3 [/INST]",
    "vicuna": VICUNA, "llava-v1": VICUNA, "wizardlm": VICUNA, "mini-gemini-vicuna": VICUNA,
    "internlm": "<|System|>:S\n<|User|>:1\n<|Bot|>:2<eoa>\n<|User|>:3\n<|Bot|>:",
    "internlm2": INTERN, "internlm3": INTERN, "internvl-internlm2": INTERN, "internvl2_5": INTERN,
    "internvl2-internlm2": TIGHT, "llava-chatml": TIGHT, "internvl-zh-hermes2": TIGHT,
    "internlm-xcomposer2": CHATML.replace("<|im_start|>", "[UNUSED_TOKEN_146]")
    .replace("2<|im_end|>\n", "2<|im_end|>\n\n").replace("<|im_end|>", "[UNUSED_TOKEN_145]"),
    "qwen": CHATML, "qwen2d5": CHATML, "qwen2d5-vl": CHATML, "qwen3": CHATML, "yi": CHATML, "dbrx": CHATML,
    "minicpm3": CHATML, "minicpmv-2d6": CHATML, "qwq_preview": CHATML, "qwq": CHATML + "<think>\n",
    "llama2": "[INST] <<SYS>>\nS\n<</SYS>>\n\n1 [/INST] 2</s><s>[INST] 3 [/INST] ",
    "codellama": "[INST] <<SYS>>\nS\n<</SYS>>\n\n1 [/INST] 2</s><s>[INST] 3 [/INST] ",
    "chatglm": "S[Round 1]\n\n问：1\n\n答：2[Round 2]\n\n问：3\n\n答：",
    "chatglm3": "[gMASK]sop<|system|>\n S<|user|>\n 1<|assistant|>\n 2<|user|>\n 3<|assistant|>\n ",
    "glm4": "[gMASK]<sop><|system|>\nS<|user|>\n1<|assistant|>\n2<|user|>\n3<|assistant|>\n",
    "codegeex4": "<|system|>\nS<|user|>\n1<|assistant|>\n2<|user|>\n3<|assistant|>\n",
    "solar": "### System:\nS\n\n### User:\n1\n\n### Assistant:\n2\n\n### User:\n3\n\n### Assistant:\n",
    "ultracm": "User: S</s>\nUser: 1</s>\nAssistant: 2</s>\nUser: 3</s>\nAssistant: ",
    "deepseek": "S\n\nUser: 1\n\nAssistant: 2<｜end▁of▁sentence｜>User: 3\n\nAssistant:",
    "deepseek-v3": "<｜begin▁of▁sentence｜>S<｜User｜>1<｜Assistant｜>2<｜end▁of▁sentence｜><｜User｜>3<｜Assistant｜>",
    "deepseek-coder": "S### Instruction:\n1\n### Response:\n2\n<|EOT|>\n### Instruction:\n3\n### Response:\n",
    "deepseek-vl2": "S<|User|>: 1\n\n<|Assistant|>: 2<｜end▁of▁sentence｜><|User|>: 3\n\n<|Assistant|>:",
    "internvl-zh": "S<human>: 1 <bot>: 2</s><human>: 3 <bot>:", "phi-3": PHI,
    # LMDeploy writes newlines behind InternVL2-4B's turns; its authors, whom we follow, do not.
    "internvl2-phi3": PHI.replace("<|end|>\n", "<|end|>"), "internvl-phi3": PHI.replace("<|end|>\n", "<|end|>"),
    "baichuan2": "S<reserved_106>1<reserved_107>2<reserved_106>3<reserved_107>",
    "gemma": "S<start_of_turn>user\n1<end_of_turn>\n<start_of_turn>model\n2<end_of_turn>\n<start_of_turn>user\n3"
    "<end_of_turn>\n<start_of_turn>model\n",
    "yi-vl": "S### Human: 1\n### Assistant:2\n### Human: 3\n### Assistant:",
    "cogvlm": "SQuestion: 1 Answer:2</s>\nQuestion: 3 Answer:", "molmo": "S User: 1 Assistant:2  User: 3 Assistant:",
}  # fmt: skip


def test_every_name_is_known() -> None:
    assert set(LISTED) <= set(builtin_names()) and len(set(builtin_names())) == len(builtin_names())
    assert all(is_builtin(name) for name in (*LISTED, *GENERATION_1)) and not is_builtin("no-such")
    for name in (*ALIASES, *OLD_NAMES, *TEMPLATES, *(rule.template for rule in RULES)):
        assert isinstance(builtin(name), PieceTemplate)


@pytest.mark.parametrize("name", sorted(EXACT))
def test_exact_texts(name: str) -> None:
    assert builtin(name).render(TALK, (), {}) == EXACT[name]


@pytest.mark.parametrize(
    ("name", "start", "stops"),
    [("codellama", "[INST] <<SYS>>\n\n<</SYS>>\n\nHi [/INST] ", ()), ("deepseek", "User: Hi\n\nAssistant:", ()),
     ("solar", "### System:\n\n\n### User:\nHi\n\n### Assistant:\n", ()),
     ("internvl2-internlm2", "<|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的",
      ("<|im_start|>", "<|im_end|>")),
     ("internvl2_5", "<|im_start|>system\n你是书生·万象，英文名是InternVL", ("<|im_end|>",)),
     ("deepseek-r1", "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\n", ("<｜end▁of▁sentence｜>",)),
     ("llama4", "<|header_start|>user<|header_end|>\n\nHi<|eot|><|header_start|>assistant<|header_end|>\n\n",
      ("<|eot|>", "<|eom|>", "<|end_of_text|>")),
     ("internlm", "<|System|>:You are an AI assistant whose name is InternLM (书生·浦语).\n- ", ("<eoa>",))],
)  # fmt: skip
def test_one_question(name: str, start: str, stops: tuple[str, ...]) -> None:
    template = builtin(name)
    assert template.render([{"role": "user", "content": "Hi"}], (), {}).startswith(start)
    assert template.stop_words == stops


def test_infilling_and_completion() -> None:
    asked = [{"role": "user", "content": "def f(<FILL>:"}]
    fill = builtin("codellama").override(TemplatePieces(capability="infilling"))
    assert fill.render(asked, (), {}) == "<PRE> def f( <SUF>: <MID>" and fill.stop_words == ("<EOT>",)
    with pytest.raises(RequestError, match="<FILL>"):
        fill.render([{"role": "user", "content": "x"}], (), {})
    for kind in ("completion", "python"):
        assert builtin("codellama").override(TemplatePieces(capability=kind)).render(asked, (), {}) == "def f(<FILL>:"


def test_a_given_piece_goes_before_the_prompts_own_end() -> None:
    template = builtin("vicuna").override(TemplatePieces(assistant="A>", meta_instruction="M"))
    assert template.render([{"role": "user", "content": "Hi"}], (), {}) == "M USER: Hi A>"


@pytest.mark.parametrize(
    ("path", "name"),
    [("internlm/internlm2-chat-7b", "internlm2"), ("/data/internlm2-math-plus-7b", "internlm2"),
     ("internlm2_5-7b-chat", "internlm2"), ("internlm3-8b-instruct", "internlm3"),
     ("internlm/internlm-chat-7b", "internlm"), ("internlm-chat-20b-4bit", "internlm"), ("internlm2-7b", None),
     ("OpenGVLab/InternVL2-26B", "internvl2-internlm2"), ("InternVL2-4B", "internvl2-phi3"),
     ("InternVL2_5-8B", "internvl2_5"), ("InternVL3-2B", "internvl2_5"), ("Qwen/Qwen-7B-Chat", "qwen"),
     ("Qwen2.5-7B-Instruct", "qwen2d5"), ("Qwen2.5-VL-7B", "qwen2d5-vl"), ("Qwen2-7B-Instruct", "qwen"),
     ("Qwen3-8B", "qwen3"), ("Meta-Llama-3.1-8B-Instruct", "llama3_1"), ("Llama-3.2-1B-Instruct", "llama3_1"),
     ("Meta-Llama-3-8B-Instruct", "llama3"), ("Llama-2-7b-chat-hf", "llama2"), ("Baichuan2-7B-Chat", "baichuan2"),
     ("Baichuan2-7B-Base", None), ("01-ai/Yi-6B-Chat", "yi"), ("yi-vl-6b", "yi-vl"), ("trying-things", None),
     ("/data/yi/plain", None), ("/qwen/other", None), ("gemma-2-9b-it", "gemma"),
     ("Phi-3-mini-4k-instruct", "phi-3"), ("vicuna-7b-v1.5", "vicuna"), ("llava-v1.6-vicuna-7b", "llava-v1"),
     ("DeepSeek-V3-0324", "deepseek-v3"), ("DeepSeek-R1", "deepseek-r1"), ("deepseek-llm-7b-chat", "deepseek"),
     ("Mistral-7B-Instruct-v0.2", "mistral"), ("Mixtral-8x7B-Instruct-v0.1", "mixtral"), ("CodeLlama-7b", "codellama"),
     ("~/.cache/huggingface/hub/models--Qwen--Qwen-7B-Chat/snapshots/0123abcd", "qwen"), ("", None)],
)  # fmt: skip
def test_a_models_name_decides(path: str, name: str | None) -> None:
    assert template_of(path) == name


def test_own_name() -> None:
    assert own_name("/a/models--org--name/snapshots/abc") == "org/name" and own_name("/a/b/") == "b"


@pytest.mark.parametrize("call", [{"function": None}, {"function": "f"}, {"function": []}])
def test_what_is_no_tool_call_is_refused(call: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="a tool call of a message is"):
        plain_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"x": ' + "1" * 5000 + "}"], ids=["cut", "deep", "long number"])
def test_arguments_that_are_no_json_stay_a_text(text: str) -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}
    assert plain_messages([message])[0]["tool_calls"][0]["function"]["arguments"] == text
