"""Chat in a terminal, or over a pipe: reads turns, streams answers, knows nothing of models or HTTP.

Input is many lines, an empty line ends it (LMDeploy's "double enter"); `exit` leaves, `end` starts afresh, `/help`
lists the rest. Ctrl-C stops the running answer only; at an empty prompt it leaves. Where stdin is no terminal, lines
are read as they come and the end of input leaves. Everything a model says is stripped of control sequences.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TextIO

from tokenmill.errors import TokenmillError
from tokenmill.serve.ui.clean import Cleaner, clean
from tokenmill.serve.ui.conversation import Conversation, Talk, run_command

PROMPT = "double enter to end input >>> "
FULL = "WARNING: exceed session max length. Please end the session (type end)."


class Reader(Protocol):
    async def read(self) -> str | None:
        """A whole turn, without its last line break; None where the input has ended."""
        ...


def is_complete(text: str) -> bool:
    """True where one Enter is enough: the words and commands that are no question."""
    return text.strip() in ("exit", "end") or text.startswith("/")


class PipeReader:
    """Lines of a file that is no terminal. The prompt is written as `input()` would."""

    def __init__(self, source: TextIO, out: TextIO):
        self._source = source
        self._out = out

    async def read(self) -> str | None:
        self._out.write(PROMPT)
        self._out.flush()
        lines: list[str] = []
        while raw := await in_daemon(self._source.readline):
            line = raw.rstrip("\r\n")
            if not line:
                return "\n".join(lines)
            lines.append(line)
            if len(lines) == 1 and is_complete(line):
                return line
        return "\n".join(lines) if lines else None


async def in_daemon(call: Callable[[], str]) -> str:
    """`call` in a thread that does not keep the program alive: a pool's thread would, until the next line comes."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[str] = loop.create_future()

    def deliver(result: str) -> None:
        if not future.done():
            future.set_result(result)

    def work() -> None:
        result = call()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, result)

    threading.Thread(target=work, name="stdin", daemon=True).start()
    return await future


class PromptReader:
    """A line editor with history in a file, by prompt_toolkit."""

    def __init__(self, history: Path | None):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            document = event.current_buffer.document
            if not document.current_line.strip() or is_complete(document.text):
                event.current_buffer.validate_and_handle()
            else:
                event.current_buffer.insert_text("\n")

        if history is not None:
            history.parent.mkdir(parents=True, exist_ok=True)
        kept = FileHistory(str(history)) if history is not None else InMemoryHistory()
        # Further lines begin at the left, as those of plain input do.
        self._session: PromptSession[str] = PromptSession(
            PROMPT, multiline=True, prompt_continuation="", key_bindings=keys, history=kept
        )

    async def read(self) -> str | None:
        try:
            return (await self._session.prompt_async()).rstrip("\n")
        except (EOFError, KeyboardInterrupt):
            return None


def open_reader(history: Path | None = None) -> Reader:
    """The editor on a terminal, plain lines elsewhere."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return PromptReader(history)
    return PipeReader(sys.stdin, sys.stdout)


@contextlib.contextmanager
def ctrl_c(task: asyncio.Task[None]) -> Iterator[None]:
    """Ctrl-C cancels `task` instead of ending the program, where the platform lets us."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, task.cancel)
    except (NotImplementedError, RuntimeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


class Terminal:
    """One user's chat. `run` returns when the user leaves."""

    def __init__(self, talk: Talk, reader: Reader, out: TextIO, conversation: Conversation | None = None):
        self.conversation = conversation or Conversation()
        self._talk = talk
        self._reader = reader
        self._out = out

    async def run(self) -> None:
        while (text := await self._reader.read()) is not None:
            word = text.strip()
            if word == "exit":
                return
            if word == "end":
                self._show(run_command(self.conversation, "/reset"))
            elif word.startswith("/"):
                self._show(run_command(self.conversation, word))
            elif word:
                await self._turn(text)

    async def _turn(self, text: str) -> None:
        """Asks and shows the answer; an answer that was stopped stays in the conversation as far as it came."""
        self.conversation.say(text)
        said: list[str] = []
        task = asyncio.ensure_future(self._stream(said))
        with ctrl_c(task):
            try:
                await task
            except asyncio.CancelledError:
                self._write("\n[stopped]\n")
            except TokenmillError as error:
                self._write(f"\nerror: {error}\n")
                if getattr(error, "code", None) == "context_length_exceeded":
                    self._write(FULL + "\n")
        if said:
            self.conversation.answered("".join(said))
        else:
            self.conversation.take_back()

    async def _stream(self, said: list[str]) -> None:
        cleaner = Cleaner()
        started, tokens, finish = time.perf_counter(), 0, None
        pieces = self._talk.answer(self.conversation.messages(), self.conversation.settings)
        async with contextlib.aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                said.append(piece.text)
                self._write(clean(piece.echo) + cleaner.feed(piece.text))
                tokens, finish = piece.completion_tokens or tokens, piece.finish or finish
        # A server tells the count behind the finish, and others tell none.
        if finish == "length" and tokens == 0 and not any(said):
            self._write(FULL)
        self._write("\n\n")
        if sys.stderr.isatty() and tokens:
            rate = tokens / max(time.perf_counter() - started, 1e-9)
            sys.stderr.write(f"[{tokens} tokens, {rate:.0f} tokens/s]\n")

    def _show(self, lines: list[str]) -> None:
        # A saved or typed conversation is text of others, too.
        self._write("".join(f"{Cleaner().feed(line)}\n" for line in lines))

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
