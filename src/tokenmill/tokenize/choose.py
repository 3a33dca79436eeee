"""Which chat template a folder gets: the one asked for by name, its own Jinja, or the builtin of its architecture."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenmill import find
from tokenmill.errors import ConfigError
from tokenmill.log import get_logger
from tokenmill.tokenize.builtins import ALIASES, OLD_NAMES, TEMPLATES
from tokenmill.tokenize.chat.internlm2 import TOOL_TOKENS
from tokenmill.tokenize.chat.internlm2 import lower_tools as internlm2_tools
from tokenmill.tokenize.folder import TextFolder
from tokenmill.tokenize.jinja import MAX_TEMPLATE_CHARS, JinjaTemplate, JinjaWorker
from tokenmill.tokenize.naming import template_of
from tokenmill.tokenize.template import ChatTemplate, PieceTemplate, TemplatePieces
from tokenmill.tokenize.vocabulary import Vocabulary

_CHAT = "tokenmill.tokenize.chat"
_BY_MODEL_TYPE = {
    "internlm2": "internlm2", "internlm3": "internlm2", "internlm": "internlm", "qwen": "qwen", "gpt_oss": "harmony",
}  # fmt: skip
# What `template` in an InternVL folder's config names: the words its authors' own `chat` was trained and is used with.
# The folder's Jinja template writes others; `--chat-template hf` chooses it.
_BY_OWN_NAME = {
    "internlm2-chat": "internvl2-internlm2", "Hermes-2": "internvl2-internlm2", "phi3-chat": "internvl2-phi3",
    "internvl2_5": "internvl2_5",
}  # fmt: skip
# Likewise of families whose authors wrote one text for all of their checkpoints.
_BY_ARCHITECTURE = {"LlavaForConditionalGeneration": "llava-v1"}
# A template that loops over the parts of a message's content, and does so whatever the content is.
_LOOPS = re.compile(r"""in\s+message(\.content|\[['"]content['"]\])""")
# Tokens that close a turn in published chat templates. Where a folder's template writes one, the model has learned to
# end with it, whatever eos_token_id says.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<eoa>", "<|eot|>", "<|call|>")
# Where turns have channels `<|end|>` closes a thought as well, and an answer follows.
CHANNEL, CHANNEL_ENDS = "<|channel|>", ("<|return|>", "<|call|>")


@dataclass(frozen=True)
class TemplateChoice:
    """What the user asks for. `name` hf or None: the folder's own where there is one. `jinja`: a template's text."""

    name: str | None = None
    pieces: TemplatePieces = TemplatePieces()
    jinja: str | None = None


def builtin_names() -> list[str]:
    """Names that `--chat-template` takes; those of LMDeploy's first generations are taken without being listed."""
    return ["hf", *(builtin(module).name for module in find.names(_CHAT)), *TEMPLATES, *ALIASES]


def is_builtin(name: str) -> bool:
    return name in (*builtin_names()[1:], *OLD_NAMES)


def builtin(name: str) -> PieceTemplate:
    """The builtin template of a name or alias. Raises ConfigError that lists the names."""
    wanted = ALIASES.get(name) or OLD_NAMES.get(name) or name
    if wanted in TEMPLATES:
        return TEMPLATES[wanted]
    module = wanted.replace("-", "_")
    if module not in find.names(_CHAT):
        raise ConfigError(f"there is no chat template {name!r}; there are {', '.join(sorted(builtin_names()))}")
    template: PieceTemplate = find.load(_CHAT, module).TEMPLATE
    return template


def choose_template(
    choice: TemplateChoice, folder: TextFolder, vocabulary: Vocabulary, model_names: tuple[str, ...] = ()
) -> ChatTemplate:
    """The template that will be used, compiled. `model_names`: what the model was called, best first; they decide where
    nothing is asked for and the folder has no template. Raises ConfigError or FormatError."""
    if choice.jinja is not None:
        return _jinja({"default": choice.jinja}, folder, vocabulary)
    if choice.name is not None and choice.name != "hf":
        return _named(choice.name, choice.pieces)
    own = _own_template(folder)
    if own is not None and choice.name is None:
        return builtin(own).override(choice.pieces)
    templates = folder.chat_templates()
    if "default" in templates:
        return _jinja(templates, folder, vocabulary)
    name = _by_name((*model_names, str(folder.path)), folder)
    if choice.name == "hf":
        raise ConfigError(f"{folder.path.name} has no chat template of its own; choose --chat-template {name}")
    get_logger().warning("%s has no chat template of its own; using the builtin %r", folder.path.name, name)
    return builtin(name).override(choice.pieces)


def _own_template(folder: TextFolder) -> str | None:
    """The builtin that is a family's own text, where its authors' Jinja writes another or none."""
    named = _BY_OWN_NAME.get(str(folder.config.get("template")))
    kinds = folder.config.get("architectures") or [""]
    return named or _BY_ARCHITECTURE.get(str(kinds[0]))


def _by_name(model_names: tuple[str, ...], folder: TextFolder) -> str:
    for name in model_names:
        found = name if is_builtin(name) else template_of(name)
        if found is not None:
            return found
    return _BY_MODEL_TYPE.get(str(folder.text_config.get("model_type")), "base")


def _named(name: str, pieces: TemplatePieces) -> PieceTemplate:
    if pieces == TemplatePieces() or is_builtin(name):
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
    text = templates["default"]
    known = CHANNEL_ENDS if CHANNEL in text else TURN_ENDS
    ends = [token for token in known if token in text and vocabulary.token_id(token) is not None]
    return JinjaTemplate(
        worker,
        stop_words=(*ends, *(("<|action_end|>",) if has_tools else ())),
        special_token_texts=folder.special_tokens(),
        lower_tools=internlm2_tools if has_tools else None,
        text_parts=_LOOPS.search(text) is not None and "is string" not in text,
    )
