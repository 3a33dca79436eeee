"""Which chat template a folder gets: the one asked for by name, its own Jinja, or the builtin of its architecture."""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill import find
from tokenmill.errors import ConfigError
from tokenmill.log import get_logger
from tokenmill.tokenize.chat.internlm2 import TOOL_TOKENS
from tokenmill.tokenize.chat.internlm2 import lower_tools as internlm2_tools
from tokenmill.tokenize.folder import TextFolder
from tokenmill.tokenize.jinja import MAX_TEMPLATE_CHARS, JinjaTemplate, JinjaWorker
from tokenmill.tokenize.template import ChatTemplate, PieceTemplate, TemplatePieces
from tokenmill.tokenize.vocabulary import Vocabulary

_CHAT = "tokenmill.tokenize.chat"
_ALIASES = {
    "internlm3": "internlm2", "llama": "llama2", "llama-2": "llama2", "llama-2-chat": "llama2", "llama3_2": "llama3_1",
    "internlm-chat-7b": "internlm", "internlm-chat-7b-8k": "internlm", "internlm-chat-20b": "internlm",
    "wizardlm": "vicuna", "baichuan2-7b": "baichuan2", "qwen-7b": "qwen", "qwen-14b": "qwen", "qwen2d5-vl": "qwen2d5",
}
_BY_MODEL_TYPE = {"internlm2": "internlm2", "internlm3": "internlm2", "internlm": "internlm", "qwen": "qwen"}
# What `template` in an InternVL folder's config names: the words its authors' own `chat` was trained and is used with.
# The folder's Jinja template writes others; `--chat-template hf` chooses it.
_BY_OWN_NAME = {
    "internlm2-chat": "internvl2-internlm2", "Hermes-2": "internvl2-internlm2", "phi3-chat": "internvl2-phi3",
    "internvl2_5": "internvl2_5",
}  # fmt: skip
# Tokens that close a turn in published chat templates. Where a folder's template writes one, the model has learned to
# end with it, whatever eos_token_id says.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<eoa>", "<|eot|>", "<|call|>")


@dataclass(frozen=True)
class TemplateChoice:
    """What the user asks for. `name` hf or None: the folder's own where there is one. `jinja`: a template's text."""

    name: str | None = None
    pieces: TemplatePieces = TemplatePieces()
    jinja: str | None = None


def builtin_names() -> list[str]:
    """Names that `--chat-template` takes."""
    return ["hf", *(builtin(module).name for module in find.names(_CHAT))]


def builtin(name: str) -> PieceTemplate:
    """The builtin template of a name or alias. Raises ConfigError that lists the names."""
    module = _ALIASES.get(name, name).replace("-", "_")
    if module not in find.names(_CHAT):
        raise ConfigError(f"there is no chat template {name!r}; there are {', '.join(builtin_names())}")
    template: PieceTemplate = find.load(_CHAT, module).TEMPLATE
    return template


def choose_template(choice: TemplateChoice, folder: TextFolder, vocabulary: Vocabulary) -> ChatTemplate:
    """The template that will be used, compiled. Raises ConfigError or FormatError."""
    if choice.jinja is not None:
        return _jinja({"default": choice.jinja}, folder, vocabulary)
    if choice.name is not None and choice.name != "hf":
        return _named(choice.name, choice.pieces)
    own = _BY_OWN_NAME.get(str(folder.config.get("template")))
    if own is not None and choice.name is None:
        return builtin(own).override(choice.pieces)
    templates = folder.chat_templates()
    if "default" in templates:
        return _jinja(templates, folder, vocabulary)
    name = _BY_MODEL_TYPE.get(str(folder.text_config.get("model_type")), "base")
    if choice.name == "hf":
        raise ConfigError(f"{folder.path.name} has no chat template of its own; choose --chat-template {name}")
    get_logger().warning("%s has no chat template of its own; using the builtin %r", folder.path.name, name)
    return builtin(name).override(choice.pieces)


def _named(name: str, pieces: TemplatePieces) -> PieceTemplate:
    if pieces == TemplatePieces() or _ALIASES.get(name, name).replace("-", "_") in find.names(_CHAT):
        return builtin(name).override(pieces)
    # A name of the user's own with pieces: a new template.
    return PieceTemplate(name).override(pieces)


def _jinja(templates: dict[str, str], folder: TextFolder, vocabulary: Vocabulary) -> JinjaTemplate:
    size = sum(len(text) for text in templates.values())
    if size > MAX_TEMPLATE_CHARS:
        raise ConfigError(f"the chat template has {size} characters; at most {MAX_TEMPLATE_CHARS} are taken")
    worker = JinjaWorker(templates)
    worker.start()
    has_tools = all(vocabulary.token_id(token) is not None for token in TOOL_TOKENS)
    ends = [token for token in TURN_ENDS if token in templates["default"] and vocabulary.token_id(token) is not None]
    return JinjaTemplate(
        worker,
        stop_words=(*ends, *(("<|action_end|>",) if has_tools else ())),
        special_token_texts=folder.special_tokens(),
        lower_tools=internlm2_tools if has_tools else None,
    )
