"""Which builtin chat template a model's name means, as LMDeploy up to 0.9 reads it from the lower-cased path.

The first rule that fits decides. A rule looks at a model's own name (its folder, or org/name), not at the folders above
it, and `yi` must stand alone: LMDeploy looks for it anywhere in the path, where it is found by accident.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_HUB_FOLDER = re.compile(r"models--(.+?)--(.+)")


@dataclass(frozen=True, slots=True)
class Rule:
    """A name with one of each of `words` (alternatives parted by |) and none of `without`."""

    template: str
    words: tuple[str, ...]
    without: str = ""

    def fits(self, name: str) -> bool:
        has = all(re.search(word, name) for word in self.words)
        return has and not (self.without and re.search(self.without, name))


RULES = (
    Rule("internlm-xcomposer2", ("internlm", "xcomposer2")),
    Rule("internvl2-phi3", ("internvl2-4b",)),
    Rule("internvl2_5", ("internvl2[._]5|internvl3",)),
    Rule("internvl2-internlm2", ("internvl2",), "internvl2-(1b|40b|llama3)"),
    Rule("internvl-zh", ("internvl-chat", "v1-1")),
    Rule("internvl-zh-hermes2", ("internvl-chat", "v1-2")),
    Rule("internvl-phi3", ("mini-internvl-chat-4b",)),
    Rule("internvl-internlm2", ("internvl-chat", "v1-5")),
    Rule("internlm2", ("internlm2", "chat|math")),
    Rule("internlm3", ("internlm3", "instruct")),
    Rule("internlm", ("internlm", "chat"), "internlm2|internlm3"),
    Rule("llava-chatml", ("llava", "v1.6-34b")),
    Rule("llava-v1", ("llava", "v1|vicuna|llava-1[._]5")),
    Rule("mini-gemini-vicuna", ("mini-gemini-(7b|13b)",)),
    Rule("vicuna", ("vicuna",)),
    Rule("wizardlm", ("wizardlm",)),
    Rule("cogvlm2", ("cogvlm2",)),
    Rule("cogvlm", ("cogvlm",)),
    Rule("qwq_preview", ("qwq", "preview")),
    Rule("qwq", ("qwq",)),
    Rule("deepseek-r1", ("deepseek-r1",)),
    Rule("deepseek-v3", ("deepseek-v3",)),
    Rule("deepseek-vl2", ("deepseek-vl2",)),
    Rule("deepseek-vl", ("deepseek-vl", "chat")),
    Rule("deepseek-coder", ("deepseek-coder",)),
    Rule("deepseek", ("deepseek", "chat")),
    Rule("qwen2d5-vl", ("qwen2[._]5", "vl")),
    Rule("qwen2d5", ("qwen2[._]5",)),
    Rule("qwen3", ("qwen3",)),
    Rule("qwen", ("qwen",)),
    Rule("minicpmv-2d6", ("minicpm-v-2_6",)),
    Rule("minicpm3", ("minicpm3",)),
    Rule("codellama", ("codellama",)),
    Rule("llama4", ("llama-4|llama4",)),
    Rule("llama3_1", ("llama-3.[12]-|llama3.[12]-",)),
    Rule("llama3", ("llama-3-|llama3-",)),
    Rule("llama2", ("llama-2|llama2",)),
    Rule("baichuan2", ("baichuan2", "chat")),
    Rule("chatglm3", ("chatglm3",)),
    Rule("chatglm", ("chatglm",)),
    Rule("glm4", ("glm-4",)),
    Rule("codegeex4", ("codegeex4",)),
    Rule("falcon", ("falcon",)),
    Rule("solar", ("solar",)),
    Rule("ultracm", ("ultracm",)),
    Rule("ultralm", ("ultralm",)),
    Rule("mixtral", ("mixtral", "instruct")),
    Rule("mistral", ("mistral", "instruct")),
    Rule("gemma", ("gemma",)),
    Rule("harmony", ("gpt-oss|gpt_oss",)),
    Rule("dbrx", ("dbrx",)),
    Rule("molmo", ("molmo",)),
    Rule("phi-3", ("phi-3", "instruct")),
    Rule("puyu", ("puyu",)),
    Rule("yi-vl", ("(^|[^a-z])yi-vl",)),
    Rule("yi", ("(^|[^a-z])yi([^a-z]|$)",), "vl"),
)


def template_of(name: str) -> str | None:
    """The template a model's name or path means; None where no rule fits."""
    own = own_name(name).lower()
    return next((rule.template for rule in RULES if rule.fits(own)), None)


def own_name(path: str) -> str:
    """The last part of a path; org/name of a hub's cache folder."""
    for part in reversed(Path(path).parts):
        found = _HUB_FOLDER.fullmatch(part)
        if found:
            return f"{found[1]}/{found[2]}"
    return Path(path).name
