"""A folder's own chat template, run in a process of its own that is killed when it is late or too big.

`JinjaTemplate` is safe to call from several threads; one render runs at a time, a few hundred microseconds each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill import pipes
from tokenmill.errors import FormatError, RequestError
from tokenmill.tokenize.messages import plain_messages
from tokenmill.tokenize.template import ToolLowering
from tokenmill.types import Message

RENDER_LIMIT_S = 2.0
START_LIMIT_S = 30.0
MEMORY_LIMIT_BYTES = 512 << 20
MAX_TEMPLATE_CHARS = 1 << 20
# Stands at the end of an assistant message that is to be continued; the trailing space shows whether text was stripped.
_MARK = "\u2063TOKENMILL-CONTINUES-HERE\u2063 "


class JinjaWorker:
    """The process. Started when first used and again after it was killed; `render` raises RequestError."""

    def __init__(self, templates: dict[str, str], limit_s: float = RENDER_LIMIT_S) -> None:
        self._templates = templates
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.variables: dict[str, list[str]] = {}

    def start(self) -> None:
        """Compiles the templates. Raises FormatError where one is no Jinja."""
        with self._lock:
            self._ready()

    def render(self, template: str, variables: dict[str, Any]) -> str:
        with self._lock:
            self._ready()
            reply = self._ask({"template": template, "variables": variables}, self._limit_s)
        if reply is None:
            raise RequestError(
                f"the model's chat template did not finish within {self._limit_s:g} s and "
                f"{MEMORY_LIMIT_BYTES >> 20} MiB; shorten the messages or choose another --chat-template"
            )
        if "text" in reply:
            return str(reply["text"])
        verb = "refuses" if reply["kind"] == "refused" else "cannot write"
        raise RequestError(f"the model's chat template {verb} these messages: {reply['error']}", param="messages")

    def close(self) -> None:
        with self._lock:
            self._kill()

    def _ready(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._kill()
        # -P keeps this folder off the module path; the worker imports nothing of Tokenmill.
        command = [sys.executable, "-P", str(Path(__file__).with_name("jinja_worker.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        reply = self._ask({"templates": self._templates, "memory_bytes": MEMORY_LIMIT_BYTES}, START_LIMIT_S)
        if reply is None:
            raise FormatError(f"the chat template does not compile within {START_LIMIT_S:g} s and its memory limit")
        if "error" in reply:
            self._kill()
            raise FormatError(f"the model's chat template is no valid Jinja: {reply['error']}")
        self.variables = reply["variables"]

    def _ask(self, message: dict[str, Any], limit_s: float) -> dict[str, Any] | None:
        """The worker's reply; None, and a dead worker, where it is late or dies."""
        assert self._process is not None
        data = json.dumps(message).encode()
        try:
            return pipes.ask(self._process, len(data).to_bytes(4, "big") + data, limit_s)
        except OSError:
            self._kill()
            return None

    def _kill(self) -> None:
        process, self._process = self._process, None
        pipes.end(process)


@dataclass(frozen=True)
class JinjaTemplate:
    """`special_token_texts`: bos_token and its kin, as the template reads them. `lower_tools` serves templates that
    read no `tools` variable. `text_parts`: the template knows content as a list of parts only, so text is one."""

    worker: JinjaWorker
    stop_words: tuple[str, ...]
    special_token_texts: dict[str, str]
    lower_tools: ToolLowering | None = None
    name: str = "hf"
    special_tokens: bool = False
    text_parts: bool = False

    def render(self, messages: Sequence[Message], tools: Sequence[Message], options: dict[str, Any]) -> str:
        plain = plain_messages(messages)
        template = "tool_use" if tools and "tool_use" in self.worker.variables else "default"
        shown: list[Message] | None = list(tools) or None
        if "tools" not in self.worker.variables[template]:
            plain, shown = self._without_variable(plain, tools), None
        continues = plain[-1]["role"] == "assistant" and not plain[-1].get("tool_calls")
        if continues:
            plain[-1] = {**plain[-1], "content": plain[-1]["content"] + _MARK}
        if self.text_parts:
            plain = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in plain]
        text = self.worker.render(
            template,
            {
                **self.special_token_texts, **options,
                "messages": plain, "tools": shown, "documents": None, "add_generation_prompt": not continues,
            },
        )
        return _cut(text) if continues else text

    def close(self) -> None:
        self.worker.close()

    def _without_variable(self, messages: list[Message], tools: Sequence[Message]) -> list[Message]:
        if self.lower_tools is not None:
            return self.lower_tools(messages, tools)
        if tools:
            raise RequestError("the model's chat template cannot present tools; send none", param="tools")
        return messages


def _cut(text: str) -> str:
    """What stands before the mark, stripped at its end where the template strips messages."""
    at = text.rfind(_MARK.rstrip())
    if at < 0:
        raise RequestError(
            "the model's chat template drops the last assistant message, so it cannot be continued; "
            "end with a user message", param="messages",
        )
    return text[:at] if text.startswith(_MARK, at) else text[:at].rstrip()
