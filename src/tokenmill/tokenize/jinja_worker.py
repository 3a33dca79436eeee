"""The process in which a checkpoint's chat template runs: sandboxed Jinja under a memory limit. Run as a script.

The sandbox alone allows strings of gigabytes and endless loops, so the parent (`jinja.py`) kills this process when an
answer is late, and this process limits its own address space. It imports nothing of Tokenmill.

Messages both ways: 4 bytes length, big-endian, then JSON. First in: {"templates": {name: text}, "memory_bytes"}, out:
{"variables": {name: [...]}}; then in: {"template", "variables"}, out: {"text"}. On failure out: {"error", "kind"}.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any, BinaryIO

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox


class Refused(jinja2.exceptions.TemplateError):
    """The template itself said no (`raise_exception`)."""


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what a trainer learns from; for a prompt its body is just its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def make_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Jinja as chat templates are written for: transformers' globals, filters and white-space rules."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def answer(templates: dict[str, jinja2.Template], request: dict[str, Any]) -> dict[str, str]:
    """The rendered text, or why there is none."""
    try:
        return {"text": templates[request["template"]].render(**request["variables"])}
    except Refused as error:
        return {"kind": "refused", "error": str(error)}
    except MemoryError:
        return {"kind": "memory", "error": "it needs more memory than a chat template may use"}
    except Exception as error:  # noqa: BLE001 - a template may fail with anything; the parent reports it to the user
        return {"kind": "failed", "error": f"{type(error).__name__}: {error}"}


def compile_all(texts: dict[str, str]) -> tuple[dict[str, jinja2.Template], dict[str, list[str]]]:
    """Compiled templates and the variables each one reads."""
    environment = make_environment()
    templates = {name: environment.from_string(text) for name, text in texts.items()}
    trees = {name: environment.parse(text) for name, text in texts.items()}
    return templates, {name: sorted(jinja2.meta.find_undeclared_variables(tree)) for name, tree in trees.items()}


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    header = stream.read(4)
    if len(header) < 4:
        return None
    return dict(json.loads(stream.read(int.from_bytes(header, "big"))))


def send(stream: BinaryIO, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    stream.write(len(data).to_bytes(4, "big") + data)
    stream.flush()


def main() -> None:
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    start = receive(source)
    if start is None:
        return
    resource.setrlimit(resource.RLIMIT_AS, (start["memory_bytes"], start["memory_bytes"]))
    try:
        templates, read = compile_all(start["templates"])
    except (jinja2.exceptions.TemplateError, RecursionError, MemoryError) as error:
        send(sink, {"kind": "syntax", "error": f"{type(error).__name__}: {error}"})
        return
    send(sink, {"variables": read})
    while (request := receive(source)) is not None:
        send(sink, answer(templates, request))


if __name__ == "__main__":
    main()
