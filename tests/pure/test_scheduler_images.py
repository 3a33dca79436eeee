"""Images in the scheduler's plans: encoded before they are needed, kept while there is room, part of block keys."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from tests.support.workloads import POISON, VOCAB, Harness, Workload

from tokenmill.config import SchedulerConfig
from tokenmill.engine.contract import Capacity, KVGroup, StepCost, StepPlan
from tokenmill.engine.fake import FakePending
from tokenmill.errors import RequestError
from tokenmill.types import Finish, MediaRef, Request, Sampling, Stop

PLAIN = Capacity((KVGroup("full", 2, 4, 64, 64),), 4, max_step_tokens=32, max_model_tokens=80, vocab_size=VOCAB)
GREEDY = Sampling(temperature=0.0, seed=1)
PICTURES = replace(PLAIN, tile_tokens=4, vector_bytes=8, encoder_cache_bytes=4 * 8 * 4, max_step_tokens=10)
GRIDS = replace(PICTURES, grids=True)


def harness(capacity: Capacity, requests: list[tuple[int, Request]]) -> Harness:
    return Harness(Workload(capacity, SchedulerConfig(overlap=True), True, requests, {}), check_every=1)


def plans_of(made: Harness) -> list[StepPlan]:
    """Notes every plan that reaches the runner."""
    seen: list[StepPlan] = []
    run = made.runner.run

    def noting(plan: StepPlan) -> FakePending:
        seen.append(plan)
        return run(plan)

    made.runner.run = noting  # type: ignore[method-assign]
    return seen


def with_images(name: str, prompt: int, *images: tuple[str, int, int], grid: tuple[int, ...] = ()) -> Request:
    media = tuple(MediaRef(digest, offset, size, f"/{digest}", grid) for digest, offset, size in images)
    ids = tuple((i * 7 + prompt) % (VOCAB - 1) for i in range(prompt))
    return Request(name, ids, GREEDY, Stop(8), media=media)


def test_an_image_is_encoded_once_and_cut_at_chunk_borders() -> None:
    made = harness(PICTURES, [(0, with_images("a", 30, ("x", 3, 12)))])
    seen = plans_of(made)
    made.run()
    assert [[item.digest for item in plan.encode] for plan in seen if plan.encode] == [["x"]]
    chunks = [row for plan in seen for row in plan.rows if row.tokens is not None]
    assert [(row.start, row.num_tokens) for row in chunks] == [(0, 10), (10, 10), (20, 10)]
    told = [[(e.offset, e.start, e.count) for e in row.embeds] for row in chunks]
    assert told == [[(3, 0, 7)], [(0, 7, 5)], []]


def test_a_prefix_is_shared_only_with_the_same_image() -> None:
    def cached(second: str) -> int:
        first = with_images("a", 30, ("x", 8, 8))
        made = harness(PICTURES, [(0, first), (25, with_images("b", 30, (second, 8, 8)))])
        made.run()
        return made.totals["cached_tokens"]

    assert cached("x") == 28 and cached("y") == 8


def test_an_image_found_in_the_cache_of_blocks_is_not_encoded() -> None:
    """A hit that ends behind the image needs no vectors; one that ends inside needs the rest of them."""
    made = harness(PICTURES, [(0, with_images("a", 14, ("x", 0, 12))), (25, with_images("b", 14, ("x", 0, 12)))])
    made.run()
    assert made.runner.encoded == 1
    other = with_images("d", 30, ("y", 16, 12))
    first, last = (with_images(name, 12, ("x", 0, 12)) for name in "ab")
    made = harness(PICTURES, [(0, first), (25, other), (50, last)])
    seen = plans_of(made)
    made.run()
    row = [row for plan in seen for row in plan.rows if row.tokens is not None][-1]
    assert made.runner.encoded == 3 and (row.start, row.embeds[0].start, row.embeds[0].count) == (8, 8, 4)


def test_two_images_that_do_not_fit_together_take_turns() -> None:
    made = harness(replace(PICTURES, max_step_tokens=32), [(0, with_images("a", 30, ("x", 2, 12), ("y", 14, 12)))])
    seen = plans_of(made)
    made.run()
    told = [([item.digest for item in plan.encode], plan.dropped_media) for plan in seen if plan.encode]
    assert told == [(["x"], []), (["y"], ["x"])]


def test_images_of_a_row_that_was_not_finite_are_dropped() -> None:
    poisoned = Request("a", (1,) * 8 + (POISON,), GREEDY, Stop(4), media=(MediaRef("x", 0, 8, "/x"),))
    made = harness(PICTURES, [(0, poisoned), (9, with_images("b", 13, ("x", 0, 8)))])
    made.run()
    assert made.answers[0].finish is Finish.ERROR and made.answers[1].finish is Finish.LENGTH
    assert made.runner.encoded == 2


WHOLE = replace(PICTURES, ahead=True, tile_tokens=6, encoder_cache_bytes=6 * 8 * 2, max_step_tokens=10)


def test_no_chunk_ends_within_an_image_whose_tokens_see_each_other() -> None:
    """It ends before the image, or behind it where the image fits as well."""
    made = harness(WHOLE, [(0, with_images("a", 30, ("x", 6, 6), ("y", 13, 6)))])
    seen = plans_of(made)
    made.run()
    chunks = [row for plan in seen for row in plan.rows if row.tokens is not None]
    assert [(row.start, row.num_tokens) for row in chunks] == [(0, 6), (6, 7), (13, 10), (23, 7)]


def test_a_target_of_time_gives_way_to_an_image() -> None:
    """Beside running rows a chunk is kept short, but an image that began is run whole."""
    slow = replace(WHOLE, max_step_tokens=16, cost=StepCost(step_us=100, row_us=1, token_us=100))
    requests = [(0, Request("a", (5, 6, 7), GREEDY, Stop(40))), (4, with_images("b", 20, ("x", 2, 6), ("y", 9, 6)))]
    config = SchedulerConfig(overlap=True, itl_target_ms=0.3)
    made = Harness(Workload(slow, config, True, requests, {}), check_every=1)
    seen = plans_of(made)
    made.run()
    chunks = [row for plan in seen for row in plan.rows if row.tokens is not None][1:]
    assert [(row.start, row.num_tokens) for row in chunks] == [(0, 8), (8, 7), (15, 4), (19, 1)]


@pytest.mark.parametrize("seed", range(12))
def test_images_stay_whole_under_any_pressure(seed: int) -> None:
    """Few blocks, little room for vectors, shared prefixes, preemption: the runner refuses a chunk that cuts one."""
    rng = Random(seed)
    blocks, rows = rng.choice([14, 18, 64]), rng.choice([1, 2, 4])
    capacity = replace(
        WHOLE, groups=(KVGroup("full", 2, 4, blocks, blocks),), max_rows=rows,
        max_step_tokens=rows + rng.choice([6, 9]), encoder_cache_bytes=6 * 8 * rng.choice([1, 2, 3]),
    )  # fmt: skip
    requests = []
    for number in range(7):
        first = rng.randrange(4)
        images = [(rng.choice("xyz"), first, 6), (rng.choice("xyz"), first + 6 + rng.choice([0, 1, 5]), 6)]
        name, prompt = str(number), images[-1][1] + 6 + rng.randrange(6)
        requests.append((rng.randrange(20), with_images(name, prompt, *images[: rng.choice([1, 2])])))
    made = harness(capacity, sorted(requests, key=lambda one: one[0]))
    made.run()
    # A drawn token may be the one that this model ends with an error on.
    assert len(made.answers) == 7 and all(one.finish in (Finish.LENGTH, Finish.ERROR) for one in made.answers.values())


def test_a_grid_turns_its_tokens_and_what_stands_behind_it() -> None:
    """Two rows of three: their tokens count on by three, and so does the answer."""
    made = harness(GRIDS, [(0, with_images("a", 12, ("x", 4, 6), grid=(2, 3)))])
    seen = plans_of(made)
    made.run()
    chunks = [row for plan in seen for row in plan.rows if row.tokens is not None]
    turns = [row.turns.tolist() for row in chunks if row.turns is not None]
    assert [(row.start, row.num_tokens) for row in chunks] == [(0, 10), (10, 2)]
    assert turns == [[
        [0, 1, 2, 3, 4, 4, 4, 4, 4, 4],
        [0, 1, 2, 3, 4, 4, 4, 5, 5, 5],
        [0, 1, 2, 3, 4, 5, 6, 4, 5, 6],
    ]]  # fmt: skip
    assert [init.turn_shift for plan in seen for init in plan.new_slots] == [3 - 6]
    assert [(item.num_tokens, item.grid) for plan in seen for item in plan.encode] == [(6, (2, 3))]


def test_the_same_pixels_in_another_grid_are_another_prefix() -> None:
    def cached(grid: tuple[int, int]) -> int:
        first, second = (with_images("ab"[i], 30, ("x", 8, 8), grid=g) for i, g in enumerate(((2, 4), grid)))
        made = harness(GRIDS, [(0, first), (25, second)])
        made.run()
        return made.totals["cached_tokens"]

    assert cached((2, 4)) == 28 and cached((4, 2)) == 8


@pytest.mark.parametrize("grid", [(), (2, 4), (6,), (1, 2, 3), (-2, -3)])
def test_grids_that_cannot_be_are_refused(grid: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="rows and columns"):
        harness(GRIDS, []).scheduler.submit(with_images("a", 30, ("x", 4, 6), grid=grid), 1)
    with pytest.raises(RequestError, match="whole tiles"):
        harness(PICTURES, []).scheduler.submit(with_images("a", 30, ("x", 4, 4), grid=(2, 2)), 1)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([("x", 0, 20)], "the encoder's cache holds 16"), ([("x", 0, 3)], "whole tiles"), ([("", 0, 4)], "whole tiles"),
        ([("x", 0, 0)], "whole tiles"), ([("x", 4, 8), ("y", 8, 4)], "one behind the other"),
        ([("x", -4, 8)], "one behind the other"), ([("x", 28, 4)], "outside the prompt"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_are_refused(images: list[tuple[str, int, int]], words: str) -> None:
    made = harness(PICTURES, [])
    with pytest.raises(RequestError, match=words) as caught:
        made.scheduler.submit(with_images("a", 30, *images), 1)
    assert caught.value.status == 400
    with pytest.raises(RequestError, match="takes no images"):
        harness(PLAIN, []).scheduler.submit(with_images("a", 30, ("x", 0, 4)), 1)
