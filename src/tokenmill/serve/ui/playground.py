"""The page of `serve gradio`: a conversation, sliders, Cancel and Reset, as LMDeploy's playground had them.

gradio is an extra and imported here only, when the page is made. The page runs in the caller's loop, beside the engine
it asks; each visitor's conversation lives in the visitor's page. Answers are shown as plain text: a model's Markdown
could make a browser fetch other sites' images.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from typing import Any

from tokenmill.errors import ConfigError, RequestError, TokenmillError
from tokenmill.serve.http.options import ServerOptions
from tokenmill.serve.http.server import bind
from tokenmill.serve.ui.clean import Cleaner
from tokenmill.serve.ui.conversation import Message, Settings, Talk

TITLE = "Tokenmill Playground"
QUEUE, AT_ONCE = 100, 32
# Least, most and first value of each slider.
SLIDERS = {
    "Maximum new tokens": (1, 2048, 512, 1),
    "Top_p": (0.01, 1.0, 0.8, 0.01),
    "Temperature": (0.01, 1.5, 0.7, 0.01),
}


def check_installed() -> None:
    if find_spec("gradio") is None:
        raise ConfigError("serve gradio needs gradio: pip install 'tokenmill[ui]' (api_server has a page at /ui)")


class Playground:
    """What the page's buttons do. Conversations are lists of {role, content}."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def say(self, text: str, shown: list[Message]) -> tuple[str, list[Message]]:
        """The box emptied, and the question in the conversation."""
        turns = plain(shown)
        return "", [*turns, {"role": "user", "content": text}] if text.strip() else turns

    async def answer(
        self, shown: list[Message], max_new_tokens: int, top_p: float, temperature: float
    ) -> AsyncIterator[list[Message]]:
        """The conversation with the answer as far as it has come. Nothing where there is no open question."""
        turns = plain(shown)
        if not turns or turns[-1]["role"] != "user":
            return
        settings = Settings(temperature, top_p, max_new_tokens=int(max_new_tokens))
        cleaner, said = Cleaner(), ""
        try:
            pieces = self._talk.answer(tuple(turns), settings)
            async with contextlib.aclosing(pieces):  # type: ignore[type-var]
                async for piece in pieces:
                    said += cleaner.feed(piece.text)
                    yield [*turns, {"role": "assistant", "content": said}]
        except TokenmillError as error:
            # gradio puts this before the visitor.
            import gradio

            raise gradio.Error(str(error), print_exception=False) from None


def plain(shown: list[Message]) -> list[Message]:
    """A conversation as gradio gives it back, with texts where it has lists of parts."""
    return [{"role": turn["role"], "content": text_of(turn["content"])} for turn in shown or []]


def text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(part["text"] for part in parts if isinstance(part, dict) and "text" in part)


def build_page(playground: Playground) -> Any:
    """gradio's Blocks, with a queue."""
    import gradio

    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        gradio.Markdown(f"# {TITLE}")
        shown = gradio.Chatbot(label="Conversation", height=480, render_markdown=False)
        box = gradio.Textbox(show_label=False, placeholder="Type a message and press Enter")
        with gradio.Row():
            cancel, reset = gradio.Button("Cancel"), gradio.Button("Reset")
        with gradio.Row():
            sliders = [gradio.Slider(low, high, first, step=step, label=label)
                       for label, (low, high, first, step) in SLIDERS.items()]  # fmt: skip
        asked = box.submit(playground.say, [box, shown], [box, shown], api_name="say")
        answered = asked.then(playground.answer, [shown, *sliders], shown, api_name="answer")
        cancel.click(None, None, None, cancels=[answered])
        reset.click(list, None, shown, cancels=[answered], api_name="reset")
    return page.queue(max_size=QUEUE, default_concurrency_limit=AT_ONCE)


async def serve_page(talk: Talk, host: str, port: int, say: Callable[[str], Any] = sys.stdout.write) -> None:
    """Serves the page until a signal. Raises ConfigError for an address that cannot be used."""
    import gradio
    import uvicorn
    from fastapi import FastAPI

    from tokenmill.serve.proxy.server import ProxyServer

    listener = bind(ServerOptions(host=host, port=port))
    # System fonts: the page must not fetch any from elsewhere.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    app = gradio.mount_gradio_app(
        FastAPI(), build_page(Playground(talk)), "/", server_name=host, server_port=port, ssr_mode=False, theme=theme,
        footer_links=[], max_file_size=0,
    )  # fmt: skip
    server = ProxyServer(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
    shown = "127.0.0.1" if host == "0.0.0.0" else host
    say(f"chat with {talk.name} at http://{shown}:{listener.getsockname()[1]} (Ctrl-C ends)\n")
    sys.stdout.flush()
    await server.serve(sockets=[listener])
    if not server.started:
        raise RequestError("the page did not start; --log-level DEBUG says more", 500)
