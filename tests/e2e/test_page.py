"""The chat page in a real browser: a whole conversation, stop, sliders, reset. Skipped where no Chromium is installed.

TOKENMILL_SCREENSHOT=FILE keeps a picture of the conversation.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.fake_text import FakeTextEngine
from tests.support.http_server import Live, running, wait_for

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (pip install playwright)", exc_type=ImportError
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")


# A machine under load takes its time; nothing here is about how fast a page is.
sync_api.expect.set_options(timeout=60_000)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with running(FakeTextEngine(step_s=0.03)) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=60_000)
            chromium.new_page().goto("data:text/html,here", timeout=60_000)
        except sync_api.Error as error:
            pytest.skip(f"Chromium does not work here: {str(error).splitlines()[0][:200]}")
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, live: Live) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 900, "height": 700})
    opened.set_default_timeout(60_000)
    asked: list[str] = []
    failed: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: failed.append(str(error)))
    opened.goto(f"{live.url}/ui", timeout=60_000)
    sync_api.expect(opened.locator("#model")).to_have_text("fake")
    yield opened
    opened.close()
    assert not failed and all(url.startswith((live.url, "data:")) for url in asked)


def say(page: Any, text: str) -> None:
    page.fill("#say", text)
    page.press("#say", "Enter")


def idle(page: Any) -> None:
    sync_api.expect(page.locator("#stop")).to_be_disabled()


def test_a_whole_conversation(page: Any, live: Live) -> None:
    say(page, "hello page")
    sync_api.expect(page.locator("#log")).to_contain_text("echo hello page")
    idle(page)
    assert "tok" in page.inner_text("#speed")
    say(page, "one more")
    # The engine says the whole conversation back: the page has sent both turns.
    sync_api.expect(page.locator("#log")).to_contain_text("echo hello page echo hello page one more")
    idle(page)
    assert [m["role"] for m in live.engine.seen[-1].prompt] == ["user", "assistant", "user"]  # type: ignore[index]
    if picture := os.environ.get("TOKENMILL_SCREENSHOT"):
        page.screenshot(path=picture)
    page.click("#reset")
    assert "echo" not in page.inner_text("#log")
    say(page, "fresh")
    sync_api.expect(page.locator("#log")).to_contain_text("echo fresh")
    idle(page)


def test_stop_ends_the_answer_in_the_engine(page: Any, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    # Slow, so that the button is pressed long before the answer ends by itself.
    monkeypatch.setattr(live.engine, "step_s", 0.5)
    say(page, " ".join(f"word{i}" for i in range(200)))
    sync_api.expect(page.locator("#log")).to_contain_text("echo word0 word1")
    before = len(live.engine.aborted)
    page.click("#stop")
    idle(page)
    wait_for(lambda: not live.engine.live and len(live.engine.aborted) == before + 1)


def test_sliders_and_system_message_are_sent(page: Any, live: Live) -> None:
    page.evaluate("""for (const [id, value] of [["temperature", "0.5"], ["top_k", "7"], ["max_tokens", "32"]]) {
        const slider = document.getElementById(id);
        slider.value = value;
        slider.dispatchEvent(new Event("input"));
    }""")
    page.evaluate('document.getElementById("system").value = "be kind"')
    say(page, "hi")
    sync_api.expect(page.locator("#log")).to_contain_text("echo be kind hi")
    idle(page)
    request = live.engine.seen[-1]
    assert (request.sampling.temperature, request.sampling.top_k, request.max_new_tokens) == (0.5, 7, 32)


def test_an_error_is_shown(page: Any) -> None:
    say(page, "boom")
    sync_api.expect(page.locator("#log")).to_contain_text("this request failed in the engine")
    idle(page)
