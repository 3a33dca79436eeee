"""Stop strings against the plain definition: the first place where one of them is complete."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.timing import best

from tokenmill.parse.stops import StopStrings
from tokenmill.parse.tags import UntilTag


def by_definition(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The earliest end of a stop string; the longest of those that end there."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def run(stops: list[str], pieces: list[str], include: bool) -> tuple[str, str | None]:
    machine, shown = StopStrings(stops, include), ""
    for piece in pieces:
        found = machine.feed(piece)
        shown += found.text
        if found.stop is not None:
            return shown, found.stop
    return shown + machine.finish(), None


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in zip(ends, ends[1:], strict=False)]


@settings(max_examples=400, deadline=None)
@given(
    text=st.text(alphabet="ab二", max_size=30),
    stops=st.lists(st.text(alphabet="ab二", max_size=6), max_size=4),
    places=st.lists(st.integers(0, 30), max_size=10),
    include=st.booleans(),
)
def test_any_text_any_cut(text: str, stops: list[str], places: list[int], include: bool) -> None:
    assert run(stops, cut(text, places), include) == by_definition(text, stops, include)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="abc", max_size=40),
    stops=st.lists(st.text(alphabet="abc", min_size=1), min_size=1, max_size=3),
)
def test_what_is_held_back_may_begin_a_stop_string(text: str, stops: list[str]) -> None:
    """Nothing is held that cannot become a stop string, and nothing is shown that could."""
    machine, fed, shown = StopStrings(stops), "", ""
    for char in text:
        found = machine.feed(char)
        fed, shown = fed + char, shown + found.text
        if found.stop is not None:
            return
        held = fed[len(shown) :]
        longest = max((size for stop in stops for size in range(len(stop)) if fed.endswith(stop[:size])), default=0)
        assert len(held) == longest


def test_a_long_stop_string_over_many_chunks() -> None:
    stop = "x" * 5000 + "y"
    text = "before " + "x" * 8000 + "y behind"
    assert run([stop], list(text), False) == ("before " + "x" * 3000, stop)


def test_hostile_stop_strings_cost_little() -> None:
    stops = ["a" * n + "b" for n in range(240, 256)]

    def cost_s() -> float:
        machine, started = StopStrings(stops), time.process_time()
        for _ in range(100):
            machine.feed("a" * 200)
        return time.process_time() - started

    assert best(cost_s, 2.0) < 2.0


@pytest.mark.parametrize("pieces", [["ab<t>cd"], list("ab<t>cd"), ["ab<", "t>cd"], ["ab<t>", "cd"]])
def test_until_tag(pieces: list[str]) -> None:
    machine, before = UntilTag("<t>", "<u>"), ""
    for number, piece in enumerate(pieces):
        text, tag, behind = machine.feed(piece)
        before += text
        if tag is not None:
            assert (before, tag, behind + "".join(pieces[number + 1 :])) == ("ab", "<t>", "cd")
            return
    raise AssertionError("the tag was not found")
