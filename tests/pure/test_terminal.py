"""The terminal chat: turns, commands, Ctrl-C, and what a model's text may not do."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.scripted_talk import ScriptedTalk

from tokenmill.serve.ui.clean import MAX_SEQUENCE, Cleaner, clean
from tokenmill.serve.ui.conversation import BOUNDS, Conversation, Message, Piece, Settings, run_command
from tokenmill.serve.ui.talk import new_part
from tokenmill.serve.ui.terminal import FULL, PROMPT, PipeReader, Terminal


async def chat(talk: ScriptedTalk, typed: str, conversation: Conversation | None = None) -> str:
    out = io.StringIO()
    await Terminal(talk, PipeReader(io.StringIO(typed), out), out, conversation).run()
    return out.getvalue()


async def test_a_turn_ends_with_an_empty_line() -> None:
    talk = ScriptedTalk(["Hel", "lo"], ["again"])
    shown = await chat(talk, "one\ntwo\n\nthree\n\nexit\nnever\n\n")
    assert [m["content"] for m in talk.asked[0][0]] == ["one\ntwo"]
    assert [m["content"] for m in talk.asked[1][0]] == ["one\ntwo", "Hello", "three"]
    assert shown == f"{PROMPT}Hello\n\n{PROMPT}again\n\n{PROMPT}"


async def test_the_end_of_input_submits_and_leaves() -> None:
    talk = ScriptedTalk(["ok"])
    assert "ok" in await chat(talk, "question without an empty line")
    assert len(talk.asked) == 1


async def test_end_starts_afresh_and_keeps_the_system_message() -> None:
    talk = ScriptedTalk(["a"], ["b"])
    await chat(talk, "/system Be short.\none\n\nend\n\ntwo\n\nexit\n")
    assert talk.asked[1][0] == (
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "two"},
    )  # fmt: skip


async def test_settings_reach_the_model() -> None:
    talk = ScriptedTalk(["a"])
    shown = await chat(talk, "/set temperature 0.2\n/set top-k=3\n/set seed 7\n/set heat 3\n/set top_p 2\nhi\n\n")
    settings = talk.asked[0][1]
    assert (settings.temperature, settings.top_k, settings.seed, settings.top_p) == (0.2, 3, 7, 0.8)
    assert "there is no setting 'heat'" in shown and "top_p is 2; it must lie between" in shown


async def test_unknown_commands_and_help() -> None:
    shown = await chat(ScriptedTalk(), "/nope\n/help\nexit\n")
    assert "there is no /nope" in shown and all(f"/{name}" in shown for name in ("system", "set", "save", "load"))


async def test_ctrl_c_stops_the_answer_only() -> None:
    talk = ScriptedTalk(["half", None], ["whole"])
    chatting = asyncio.ensure_future(chat(talk, "one\n\ntwo\n\nexit\n"))
    await asyncio.wait_for(talk.waiting.wait(), 60)
    os.kill(os.getpid(), signal.SIGINT)
    shown = await asyncio.wait_for(chatting, 60)
    assert talk.stopped == 1 and "[stopped]" in shown and "whole" in shown
    assert [m["content"] for m in talk.asked[1][0]] == ["one", "half", "two"]


async def test_control_sequences_of_the_model_are_not_printed() -> None:
    shown = await chat(ScriptedTalk(["a\x1b", "[31mred\x1b]0;title\x07b\x9b2J\rc\u202ed"]), "x\n\n")
    assert shown.split(PROMPT)[1] == "aredbcd\n\n"


def test_save_and_load(tmp_path: Path) -> None:
    talk = Conversation(system="S")
    talk.say("q")
    talk.answered("你好")
    file = tmp_path / "talk.json"
    assert "2 messages" in run_command(talk, f"/save {file}")[0]
    assert json.loads(file.read_text(encoding="utf-8"))[2] == {"role": "assistant", "content": "你好"}
    other = Conversation()
    run_command(other, f"/load {file}")
    assert other.messages() == talk.messages()


@pytest.mark.parametrize("text", ["{}", "[]", "[1]", '[{"role": "user"}]', "no json"])
def test_load_refuses_what_is_no_conversation(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text, encoding="utf-8")
    assert run_command(Conversation(), f"/load {file}")[0].startswith("error: ")


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "x", ""])
def test_a_setting_out_of_bounds_is_refused(name: str, value: str) -> None:
    talk = Conversation()
    before = talk.settings
    shown = run_command(talk, f"/set {name} {value}")
    assert talk.settings == before and (shown[0].startswith("error: "))


PARTS = ["a", "中", "\n", "\t", "\x1b[31m", "\x1b]0;t\x07", "\x1b]0;t\x1b\\", "\x9b1m", "\x1b(B", "\x1bc", "\x07", "\r",
         "\x08", "\x7f", "\u202e", "\x1bPq\x1b\\"]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS)), st.data())
def test_cleaning_does_not_depend_on_the_cuts(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    cleaner = Cleaner()
    bounds = [0, *cuts, len(text)]
    pieces = "".join(cleaner.feed(text[a:b]) for a, b in zip(bounds, bounds[1:], strict=False))
    assert pieces == clean(text) == "".join(p for p in parts if p in ("a", "中", "\n", "\t"))


@given(st.text())
def test_nothing_dangerous_remains(text: str) -> None:
    assert not {c for c in clean(text) if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f"}


def test_an_unfinished_sequence_does_not_swallow_the_answer() -> None:
    assert clean("\x1b]0;" + "x" * 1000).count("x") >= 1000 - MAX_SEQUENCE


TURNS = (
    {"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}, {"role": "user", "content": "q2\nmore"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("rendered", "first", "later"),
    [
        ("<|User|>:q1<eoh>\n<|Bot|>:{}", "<|User|>:q1<eoh>\n<|Bot|>:", "<|User|>:q2\nmore<eoh>\n<|Bot|>:"),
        ("<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n{}", "<|im_start|>user\nq1<|im_end|>\n"
         "<|im_start|>assistant\n", "<|im_start|>user\nq2\nmore<|im_end|>\n<|im_start|>assistant\n"),
        ("[INST] q1 [/INST]{}", "[INST] q1 [/INST]", " </s><s>[INST] q2\nmore [/INST]"),
    ],
    ids=["internlm", "internlm2", "llama2"],
)  # fmt: skip
def test_a_turn_s_own_part_of_the_prompt(rendered: str, first: str, later: str) -> None:
    """As the first generation showed it: all of the first prompt, then what each turn adds."""
    ends = {"<|U": "<eoa>\n", "<|i": "<|im_end|>\n", "[IN": ""}
    assert new_part(rendered.format(""), TURNS[:1]) == first
    assert new_part(rendered.format("a1") + ends[rendered[:3]] + later, TURNS) == later


def test_images_go_with_the_next_question(tmp_path: Path) -> None:
    talk = Conversation()
    picture = tmp_path / "a b.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\nrest")
    assert run_command(talk, f"/image {picture}") == ["1 image with your next message"]
    assert run_command(talk, "/image https://example.com/b.jpg") == ["2 images with your next message"]
    (tmp_path / "c.png").write_bytes(b"text")
    cases = {"/image": "PATH", "/image nowhere.png": "cannot be read", f"/image {tmp_path}/c.png": "no image"}
    for line, words in cases.items():
        assert words in run_command(talk, line)[0]
    talk.say("what?")
    first, second, text = talk.turns[0]["content"]
    assert first["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    assert second["image_url"]["url"] == "https://example.com/b.jpg" and text == {"type": "text", "text": "what?"}
    assert run_command(talk, "/show") == ["user: [image] [image] what?"]
    talk.say("and now?")
    assert talk.turns[1]["content"] == "and now?" and talk.take_back() == "and now?"
    assert talk.take_back() == "[image] [image] what?"


@pytest.mark.parametrize(("texts", "warns"), [(["ab"], False), ([""], True)])
async def test_a_full_session_is_told_by_an_empty_answer(texts: list[str], warns: bool) -> None:
    """A server sends its count behind the finish, and others send none: an answer that was cut is no full session."""

    class Cut(ScriptedTalk):
        async def answer(self, messages: tuple[Message, ...], settings: Settings) -> AsyncIterator[Piece]:
            for text in texts:
                yield Piece(text, "length", 0)
            yield Piece("", None, len("".join(texts)))

    assert (FULL in await chat(Cut(), "hi\n\nexit\n")) == warns
