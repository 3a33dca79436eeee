"""Reasoning as tokens: what a budget counts, and what a response_format comes after. Pure.

A budget is enforced where the answer's reasoning is read (a reasoning parser) and its closing tag is one token. Where
not, one that came as a template option (`thinking_budget`, Anthropic's `budget_tokens`) is the template's alone.
"""

from __future__ import annotations

from tokenmill import find
from tokenmill.api.parsers import REASONING, ParserNames
from tokenmill.api.toolgrammar import TOOL_CALLS
from tokenmill.errors import RequestError
from tokenmill.tokenize.vocabulary import Vocabulary
from tokenmill.types import TextRequest, Thinking

OPTION = "thinking_budget"


def thinking_of(request: TextRequest, names: ParserNames, vocabulary: Vocabulary) -> Thinking | None:
    """None where nothing bounds reasoning and no grammar waits for its end. Raises RequestError for a budget that
    cannot be kept."""
    close_id, module = None, None
    if request.chat and names.reasoning is not None:
        module = find.load(REASONING, names.reasoning)
        # Channels (harmony) have more tags than a pair, and none that ends reasoning alone.
        close_id = vocabulary.token_id(module.TAGS[1]) if len(module.TAGS) == 2 else None
    if module is None or close_id is None:
        if request.thinking_budget is not None:
            raise RequestError(
                "a thinking budget needs a chat with a model whose reasoning the server reads; leave it out, or start "
                "the server with --reasoning-parser", param="thinking_token_budget",
            )
        return None
    inside = module.starts_inside(request.template_options)
    budget = _budget(request)
    waits = inside and request.grammar is not None and not _thinks_itself(request)
    if budget is None and not waits:
        return None
    open_id = vocabulary.token_id(module.TAGS[0])
    return Thinking(close_id, -1 if open_id is None else open_id, inside, budget, waits)


def _budget(request: TextRequest) -> int | None:
    asked = request.thinking_budget if request.thinking_budget is not None else request.template_options.get(OPTION)
    return asked if type(asked) is int and asked >= 0 else None


def _thinks_itself(request: TextRequest) -> bool:
    """The grammar of calls that must come has reasoning in it."""
    return request.grammar is not None and request.grammar.kind == TOOL_CALLS and request.tool_choice != "auto"
