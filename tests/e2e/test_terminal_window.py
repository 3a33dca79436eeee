"""The first generation's transcript in a real terminal: double enter, exit, end, Ctrl-C, commands, history."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tokenmill.serve.ui.terminal import PROMPT

pytest.importorskip("pyte", reason="needs the terminal emulator pyte")
from tests.support.terminal_window import Window

ROOT = Path(__file__).parents[2]
CTRL_C, UP, ENTER = "\x03", "\x1b[A", "\r"


@contextmanager
def chat(folder: Path, *words: str, delay_s: float = 0.0) -> Iterator[Window]:
    environment = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "TOKENMILL_CACHE": str(folder), "ECHO_DELAY_S": str(delay_s)}
    with Window([sys.executable, "-m", "tests.support.echo_chat", "chat", *words], environment, folder) as window:
        window.wait_prompt(PROMPT, 1)
        yield window


def shown(window: Window) -> list[str]:
    """What is on the screen, without notes and without lines that only rate an answer."""
    return [line for line in window.lines if line and not line.startswith(("note: ", "["))]


def test_the_first_generation_s_transcript(tmp_path: Path) -> None:
    """`chat turbomind ./workspace`: prompts, the templated turn, the answer; `end` forgets, `exit` leaves."""
    with chat(tmp_path, "turbomind", "./workspace") as window:
        window.type(f"hello{ENTER}{ENTER}")
        window.wait_prompt(PROMPT, 2)
        window.type(f"two{ENTER}lines{ENTER}{ENTER}")
        window.wait_prompt(PROMPT, 3)
        window.type(f"end{ENTER}")
        window.wait_prompt(PROMPT, 4)
        window.type(f"again{ENTER}{ENTER}")
        window.wait_prompt(PROMPT, 5)
        window.type(f"exit{ENTER}")
        assert window.end() == 0
        assert shown(window) == [
            f"{PROMPT}hello", "<|im_start|>user", "hello<|im_end|>", "<|im_start|>assistant", "hello",
            f"{PROMPT}two", "lines", "<|im_start|>user", "two", "lines<|im_end|>", "<|im_start|>assistant", "two",
            "lines",
            f"{PROMPT}end", "the conversation starts afresh",
            f"{PROMPT}again", "<|im_start|>user", "again<|im_end|>", "<|im_start|>assistant", "again",
            f"{PROMPT}exit",
        ]  # fmt: skip


def test_ctrl_c_stops_the_answer_only(tmp_path: Path) -> None:
    with chat(tmp_path, "echo", delay_s=0.2) as window:
        window.type("a" * 200 + ENTER + ENTER)
        window.wait_for(lambda lines: "aaa" in lines[-1] and not lines[-1].startswith(PROMPT[:6]) and len(lines) > 3)
        window.type(CTRL_C)
        window.wait_prompt(PROMPT, 2)
        assert any(line.endswith("[stopped]") for line in window.lines)
        window.type(f"b{ENTER}{ENTER}")
        window.wait_prompt(PROMPT, 3)
        window.type(f"/show{ENTER}")
        window.wait_for(lambda lines: "assistant: b" in lines)
        stopped = [line for line in window.lines if line.startswith("assistant: a")]
        assert len(stopped) == 1 and len(stopped[0]) < 200
        # At an empty prompt it leaves.
        window.wait_prompt(PROMPT, 4)
        window.type(CTRL_C)
        assert window.end() == 0


def test_commands_and_history(tmp_path: Path) -> None:
    with chat(tmp_path, "echo", "--temperature", "0.5") as window:
        window.type(f"/set top_k 3{ENTER}")
        window.wait_for(lambda lines: "top_k                3" in lines and "temperature          0.5" in lines)
        window.wait_prompt(PROMPT, 2)
        window.type(f"remember me{ENTER}{ENTER}")
        window.wait_prompt(PROMPT, 3)
        window.type(f"exit{ENTER}")
        assert window.end() == 0
    with chat(tmp_path, "echo") as window:
        window.type(UP + UP + ENTER + ENTER)
        window.wait_prompt(PROMPT, 2)
        assert window.lines.count("remember me") == 1
        window.type(f"/nope{ENTER}")
        window.wait_for(lambda lines: "there is no /nope; /help lists what there is" in lines)


def test_wide_characters_and_control_sequences(tmp_path: Path) -> None:
    with chat(tmp_path, "echo") as window:
        window.type(f"你好，世界{ENTER}{ENTER}")
        window.wait_prompt(PROMPT, 2)
        assert "你好，世界" in [line.replace(" ", "") for line in window.lines]
