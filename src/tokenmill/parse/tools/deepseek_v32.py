"""DeepSeek-V3.2 and V4 (DSML): a block of `invoke name="f"` elements, each with `parameter name="k" string="..."`.

Every element's name has the mark in front. `string="true"` is text as it stands, `"false"` JSON. V3.2 names the block
function_calls, V4 tool_calls.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenmill.parse.calls import TaggedCalls, from_json, to_json
from tokenmill.parse.events import ToolCallEvent
from tokenmill.parse.forms import Frame, parameter_calls
from tokenmill.types import Message

MARK = "｜DSML｜"
BLOCKS = {f"<{MARK}{name}>": f"</{MARK}{name}>" for name in ("function_calls", "tool_calls")}
TAGS = (MARK,)
SIGNS = TAGS
_INVOKE = re.compile(rf'\s*<{MARK}invoke name="([^"]+)">(.*?)</{MARK}invoke>\s*', re.DOTALL)
_PARAMETER = re.compile(
    rf'\s*<{MARK}parameter name="([^"]+)" string="(true|false)">(.*?)</{MARK}parameter>\s*', re.DOTALL
)
FRAME = Frame(f"<{MARK}function_calls>", f"<{MARK}function_calls>\n", "", f"</{MARK}function_calls>")
call_parts = parameter_calls(
    f'<{MARK}invoke name="NAME">\n', f"</{MARK}invoke>\n",
    lambda key, is_text: f'<{MARK}parameter name="{key}" string="{str(is_text).lower()}">', f"</{MARK}parameter>\n",
)


class ToolParser(TaggedCalls):
    def __init__(self, tools: Sequence[Message] = ()) -> None:
        super().__init__(BLOCKS, _read)


def _read(body: str) -> list[ToolCallEvent]:
    calls, at = [], 0
    while at < len(body):
        invoke = _INVOKE.match(body, at)
        arguments = _arguments(invoke[2]) if invoke else None
        if invoke is None or arguments is None:
            return []
        calls.append(ToolCallEvent(invoke[1], to_json(arguments)))
        at = invoke.end()
    return calls


def _arguments(text: str) -> dict[str, object] | None:
    found: dict[str, object] = {}
    at = 0
    while text[at:].strip():
        pair = _PARAMETER.match(text, at)
        if pair is None:
            return None
        value = pair[3] if pair[2] == "true" else from_json(pair[3])
        if value is None and pair[3].strip() != "null":
            return None
        found[pair[1]] = value
        at = pair.end()
    return found
