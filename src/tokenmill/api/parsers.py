"""Which parsers read a served model's answers: by name, or by what the tokenizer holds."""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill import find
from tokenmill.api.answer import Parsers
from tokenmill.errors import ConfigError
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.types import TextRequest

TOOLS, REASONING = "tokenmill.parse.tools", "tokenmill.parse.reasoning"
_TOOL_ALIASES = {
    "internlm": "internlm2", "intern-s1": "internlm2", "qwen": "hermes", "qwen2d5": "hermes", "qwen3": "hermes",
    "interns2-preview": "qwen3coder", "llama3.1": "llama3", "llama3_1": "llama3", "glm4": "glm47", "glm45": "glm47",
    "deepseek": "deepseek_v3", "deepseek-r1": "deepseek_v3", "deepseek-v3.2": "deepseek_v32",
    "deepseek-v4": "deepseek_v32",
}  # fmt: skip
_REASONING_ALIASES = {
    "default": "think_tags", "qwen-qwq": "think_tags", "intern-s1": "think_tags", "deepseek-r1": "think_tags",
    "qwen3": "think_tags", "deepseek-v3.2": "deepseek_v32", "deepseek-v4": "deepseek_v32",
    "gpt-oss": "harmony", "openai_gptoss": "harmony",
}  # fmt: skip


@dataclass(frozen=True)
class ParserNames:
    """Module names in parse/tools and parse/reasoning; None leaves the text alone."""

    tools: str | None = None
    reasoning: str | None = None


def parser_names(tools: str | None, reasoning: str | None, vocabulary: Vocabulary) -> ParserNames:
    """What the user asked for; without a wish, calls and channels are read where the tokenizer has a dialect's tags.

    Raises ConfigError on a name that is not there.
    """
    tools = _spoken(TOOLS, vocabulary) if tools is None else tools
    reasoning = _spoken(REASONING, vocabulary) if reasoning is None else reasoning
    return ParserNames(_checked(TOOLS, tools, _TOOL_ALIASES), _checked(REASONING, reasoning, _REASONING_ALIASES))


def parsers_for(names: ParserNames, request: TextRequest, vocabulary: Vocabulary) -> Parsers:
    """Fresh parsers of one answer; tool calls are looked for only where tools were given."""
    reasoning = tools = None
    keep: frozenset[int] = frozenset()
    if names.reasoning is not None:
        module = find.load(REASONING, names.reasoning)
        inside = module.starts_inside(request.template_options)
        reasoning, keep = module.ReasoningParser(inside), _ids(module.TAGS, vocabulary)
    if names.tools is not None and request.tools and request.tool_choice != "none":
        module = find.load(TOOLS, names.tools)
        tools, keep = module.ToolParser(request.tools), keep | _ids(module.TAGS, vocabulary)
    return Parsers(reasoning, tools, keep)


def _spoken(package: str, vocabulary: Vocabulary) -> str | None:
    """The dialect whose signs the tokenizer holds, the one with most of them where several do."""
    signs = {name: tuple(getattr(find.load(package, name), "SIGNS", ())) for name in find.names(package)}
    held = [n for n, tags in signs.items() if tags and all(vocabulary.token_id(tag) is not None for tag in tags)]
    return max(held, key=lambda name: len(signs[name]), default=None)


def _checked(package: str, name: str | None, aliases: dict[str, str]) -> str | None:
    if name is None:
        return None
    module = aliases.get(name, name).replace("-", "_")
    if module not in find.names(package):
        known = sorted({*find.names(package), *aliases})
        raise ConfigError(f"there is no {package.rsplit('.', 1)[-1]} parser {name!r}; there are {', '.join(known)}")
    return module


def _ids(tags: tuple[str, ...], vocabulary: Vocabulary) -> frozenset[int]:
    return frozenset(token for tag in tags if (token := vocabulary.token_id(tag)) is not None)
