"""Steps of the runner against dense attention without pages: chunks, batches, hits, copies, NaN, masks, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.support.drive import GREEDY, Driver, blocks, chunk, init, ints
from tests.support.tiny_runner import BLOCK, VOCAB, TinyModel, tiny_capacity, tiny_runner

from tokenmill.engine.contract import Encode, Row
from tokenmill.runner import extras
from tokenmill.types import Sampling, Want

PROMPT = [5, 17, 3, 44, 90, 2, 61, 8, 8, 33, 71]


@pytest.fixture
def driver():
    runner, model = tiny_runner()
    driver = Driver(runner)
    driver.model = model
    yield driver
    runner.close()


def greedy(model: TinyModel, prompt: list[int], count: int, base: float = 0.0) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model.reference_logits(tokens, base)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("chunks", [1, 3, 7, 100])
def test_a_prompt_in_chunks_then_decode_equals_dense_attention(driver, chunks):
    assert driver.generate(0, PROMPT, 20, chunks) == greedy(driver.model, PROMPT, 20)


def test_rows_of_every_length_share_a_step(driver):
    """A decode row, a one-token row and two chunks in one step each get what they would get alone."""
    driver.run(rows=[chunk(2, PROMPT)], inits=[init(2, PROMPT)], new_blocks=driver.take(2, 40))
    first = greedy(driver.model, PROMPT, 2)
    prompts = {0: [9], 1: PROMPT[:6], 3: PROMPT[2:]}
    result = driver.run(
        decode=[2],
        rows=[chunk(1, prompts[1]), chunk(0, prompts[0]), chunk(3, prompts[3])],
        inits=[init(s, p) for s, p in prompts.items()],
        new_blocks=np.concatenate([driver.take(s, 20) for s in prompts]),
    )
    assert result.slots.tolist() == [2, 1, 0, 3]
    assert result.epochs.tolist() == [102, 101, 100, 103]
    assert result.counts.tolist() == [1] * 4
    assert result.tokens[:, 0].tolist() == [first[1]] + [greedy(driver.model, prompts[s], 1)[0] for s in (1, 0, 3)]


def test_steps_queued_ahead_use_the_ids_drawn_on_the_device(driver):
    driver.run(rows=[chunk(0, PROMPT)], inits=[init(0, PROMPT)], new_blocks=driver.take(0, 60))
    ahead = [driver.runner.run(driver.plan(decode=[0])) for _ in range(10)]
    assert [int(p.result().tokens[0, 0]) for p in ahead] == greedy(driver.model, PROMPT, 11)[1:]


def test_a_row_from_the_device_among_rows_equals_a_decode_slot(driver):
    driver.run(rows=[chunk(0, PROMPT)], inits=[init(0, PROMPT)], new_blocks=driver.take(0, 60))
    result = driver.run(rows=[Row(0, 1, None, -1, Want.TOKEN | Want.HIDDEN)])
    expected = greedy(driver.model, PROMPT, 2)
    assert result.tokens[0, 0] == expected[1]
    hidden = result.extras[(0, 100)].hidden
    again = torch.from_numpy(hidden) @ driver.model.head
    assert torch.allclose(again[0], driver.model.reference_logits(PROMPT + expected[:1])[-1], atol=1e-3)


def test_shared_blocks_serve_as_a_prefix(driver):
    """Slot 1 takes the two full blocks that slot 0 filled and runs only what follows them."""
    given = driver.take(0, 40)
    driver.run(rows=[chunk(0, PROMPT)], inits=[init(0, PROMPT)], new_blocks=given)
    other = PROMPT[: 2 * BLOCK] + [1, 2, 3]
    shared = blocks(1, given[:2, 3].tolist()) + blocks(1, [int(b) for b in driver.free[:5]], first=2)
    result = driver.run(rows=[chunk(1, other[8:], start=8)], inits=[init(1, other)], new_blocks=ints(shared))
    assert result.tokens[0, 0] == greedy(driver.model, other, 1)[0]


def test_copied_blocks_hold_what_their_source_held(driver):
    given = driver.take(0, 40)
    driver.run(rows=[chunk(0, PROMPT)], inits=[init(0, PROMPT)], new_blocks=given)
    mine = [int(b) for b in driver.free[:6]]
    result = driver.run(
        rows=[chunk(1, [7], start=11)],
        inits=[init(1, PROMPT)],
        new_blocks=ints(blocks(1, mine)),
        block_copies=ints([[0, int(given[i, 3]), mine[i]] for i in range(3)]),
    )
    assert result.tokens[0, 0] == greedy(driver.model, [*PROMPT, 7], 1)[0]


def test_a_slot_is_released_and_given_again_in_one_plan(driver):
    driver.run(rows=[chunk(0, PROMPT)], inits=[init(0, PROMPT)], new_blocks=driver.take(0, 40))
    other = PROMPT[::-1]
    result = driver.run(
        rows=[chunk(0, other)], inits=[init(0, other, epoch=7)], new_blocks=driver.take(0, 40), released_slots=ints([0])
    )
    assert (result.epochs[0], result.tokens[0, 0]) == (7, greedy(driver.model, other, 1)[0])


def test_rope_base_is_the_slots_own(driver):
    a = driver.generate(0, PROMPT, 5, rope_base=0.5)
    b = driver.generate(0, PROMPT, 5)
    assert a == greedy(driver.model, PROMPT, 5, 0.5)
    assert b == greedy(driver.model, PROMPT, 5)


def test_logits_that_are_not_finite_fail_their_row_alone():
    runner, model = tiny_runner(TinyModel(torch.device("cpu"), bad_token=13))
    driver = Driver(runner)
    rows = {0: PROMPT, 1: [4, 13, 6], 2: PROMPT[3:]}
    result = driver.run(
        rows=[chunk(s, p) for s, p in rows.items()],
        inits=[init(s, p) for s, p in rows.items()],
        new_blocks=np.concatenate([driver.take(s, 20) for s in rows]),
    )
    assert result.counts.tolist() == [1, 0, 1]
    assert 0 <= result.tokens[1, 0] < VOCAB
    after = driver.run(decode=[0, 1, 2])
    assert after.counts.tolist() == [1, 0, 1]
    assert after.tokens[0, 0] == greedy(model, PROMPT, 2)[1]
    runner.close()


def test_masks_come_late_and_bind(driver):
    driver.run(
        rows=[chunk(s, PROMPT) for s in (0, 1)],
        inits=[init(s, PROMPT) for s in (0, 1)],
        new_blocks=np.concatenate([driver.take(s, 40) for s in (0, 1)]),
    )
    pending = driver.runner.run(driver.plan(decode=[0, 1], masked=ints([1])))
    with pytest.raises(ValueError, match="waits for its masks"):
        driver.runner.run(driver.plan(decode=[0]))
    allowed = np.zeros(VOCAB + 7, np.uint8)
    allowed[[20, 40, 60]] = 1
    pending.sample({1: np.packbits(allowed, bitorder="little").tobytes()})
    result = pending.result()
    expected = greedy(driver.model, PROMPT, 2)
    logits = driver.model.reference_logits(PROMPT + expected[:1])[-1]
    assert result.tokens[0, 0] == expected[1]
    assert result.tokens[1, 0] == max((20, 40, 60), key=lambda t: float(logits[t]))


def test_log_probabilities_are_of_the_raw_distribution(driver):
    sampling = Sampling(temperature=0.3, top_k=5, repetition_penalty=1.5)
    result = driver.run(
        rows=[chunk(0, PROMPT, want=Want.TOKEN | Want.LOGPROBS)],
        inits=[init(0, PROMPT, sampling, seed=4, top_logprobs=3)],
        new_blocks=driver.take(0, 40),
    )
    reference = driver.model.reference_logits(PROMPT)[-1].log_softmax(-1)
    extra = result.extras[(0, 100)]
    assert extra.logprobs[0] == pytest.approx(float(reference[result.tokens[0, 0]]), abs=1e-4)
    values, ids = reference.topk(3)
    assert extra.top_ids[0].tolist() == ids.tolist()
    assert extra.top_logprobs[0] == pytest.approx(values.numpy(), abs=1e-4)
    steady = driver.runner.run(driver.plan(decode=[0], want_logprobs=ints([0]))).result()
    assert steady.extras[(0, 100)].top_ids.shape == (1, 3)


@pytest.mark.parametrize("chunks", [4, 100])
def test_prompt_log_probabilities(driver, chunks):
    got = []
    for start in range(0, len(PROMPT), chunks):
        part = PROMPT[start : start + chunks]
        targets = [*PROMPT, -1][start + 1 : start + 1 + len(part)]
        first = {"inits": [init(0, PROMPT, top_logprobs=2)], "new_blocks": driver.take(0, 40)} if start == 0 else {}
        result = driver.run(rows=[chunk(0, part, start, Want.PROMPT_LOGPROBS, targets)], **first)
        assert len(result.slots) == 0
        got.append(result.extras[(0, 100)])
    reference = driver.model.reference_logits(PROMPT)[:-1].log_softmax(-1)
    mine = reference.gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0]
    assert np.concatenate([e.prompt_logprobs for e in got]) == pytest.approx(mine.numpy(), abs=1e-4)
    assert np.concatenate([e.prompt_top_ids for e in got]).tolist() == reference.topk(2).indices.tolist()


@pytest.mark.parametrize("piece", [256, 3])
def test_logits_hidden_and_pool(driver, monkeypatch, piece):
    monkeypatch.setattr(extras, "CHUNK", piece)
    want = Want.LOGITS | Want.HIDDEN | Want.POOL
    result = driver.run(rows=[chunk(0, PROMPT, want=want)], inits=[init(0, PROMPT)], new_blocks=driver.take(0, 40))
    extra = result.extras[(0, 100)]
    reference = driver.model.reference_logits(PROMPT).numpy()
    assert extra.logits == pytest.approx(reference, abs=1e-3)
    assert extra.hidden @ driver.model.head.numpy() == pytest.approx(reference, abs=1e-3)
    assert extra.pool.tolist() == extra.hidden[-1].tolist()


def test_penalties_see_the_prompt_on_a_prefix_hit_and_output_as_it_comes(driver):
    """The runner never runs the first eight tokens, yet the repetition penalty knows them."""
    sampling = Sampling(temperature=0.0, repetition_penalty=5.0, frequency_penalty=1.5, presence_penalty=0.7)
    given = driver.take(0, 40)
    driver.run(rows=[chunk(0, PROMPT)], inits=[init(0, PROMPT)], new_blocks=given)
    shared = blocks(1, given[:2, 3].tolist()) + blocks(1, [int(b) for b in driver.free[:9]], first=2)
    result = driver.run(
        rows=[chunk(1, PROMPT[8:], start=8)], inits=[init(1, PROMPT, sampling)], new_blocks=ints(shared)
    )
    tokens = [int(result.tokens[0, 0])] + [int(driver.run(decode=[1]).tokens[0, 0]) for _ in range(7)]
    assert tokens == _penalised(driver.model, sampling, 8)


def test_a_preempted_row_counts_what_it_had_drawn(driver):
    sampling = Sampling(temperature=0.0, repetition_penalty=5.0, frequency_penalty=1.5, presence_penalty=0.7)
    whole = _penalised(driver.model, sampling, 8)
    context = PROMPT + whole[:4]
    start = init(3, context, sampling, prompt_tokens=len(PROMPT))
    result = driver.run(rows=[chunk(3, context)], inits=[start], new_blocks=driver.take(3, 40))
    assert [int(result.tokens[0, 0])] + [int(driver.run(decode=[3]).tokens[0, 0]) for _ in range(3)] == whole[4:]


def _penalised(model: TinyModel, sampling: Sampling, count: int) -> list[int]:
    """Closed form of the three penalties, token by token."""
    out: list[int] = []
    for _ in range(count):
        x = model.reference_logits(PROMPT + out)[-1].clone()
        for token in set(PROMPT + out):
            x[token] = x[token] / 5.0 if x[token] > 0 else x[token] * 5.0
        for token in set(out):
            x[token] -= sampling.frequency_penalty * out.count(token) + sampling.presence_penalty
        out.append(int(x.argmax()))
    return out


def test_stop_ids_wait_for_min_tokens(driver):
    plain = driver.generate(0, PROMPT, 6)
    held = driver.generate(1, PROMPT, 6, stop_ids=(plain[0],), min_tokens=len(PROMPT) + 2)
    assert plain[0] not in held[:2]
    free = driver.generate(2, PROMPT, 6, stop_ids=(plain[0],), min_tokens=len(PROMPT))
    assert free == plain


def test_plans_that_cannot_be_run_are_refused():
    cases = {
        "not held": lambda d: d.plan(decode=[1]),
        "row of 0 tokens": lambda d: d.plan(rows=[Row(0, 0, ints([]), 0, Want.TOKEN)]),
        "has 0 blocks": lambda d: d.plan(rows=[chunk(1, [1])], inits=[init(1, [1])]),
        "has 3 blocks": lambda d: d.plan(rows=[chunk(0, [1] * 2, start=11)]),
        "a token outside": lambda d: d.plan(rows=[chunk(0, [VOCAB])]),
        "stands twice": lambda d: d.plan(decode=[0, 0]),
        "drafts": lambda d: d.plan(rows=[Row(0, 2, None, -1, Want.TOKEN)]),
        "held by epoch 100": lambda d: d.plan(inits=[init(0, [1])]),
        "slot 9 given": lambda d: d.plan(inits=[init(9, [1])]),
        "block outside": lambda d: d.plan(new_blocks=ints([[0, 0, 0, 128]])),
        "tokens planned": lambda d: d.plan(rows=[chunk(0, [1] * 65)]),
        "without its history": lambda d: d.plan(
            inits=[init(1, [1], Sampling(repetition_penalty=2.0), history=None)]
        ),
        "masked but draw no": lambda d: d.plan(rows=[chunk(0, [1], want=Want.NONE)], masked=ints([0])),
        "without a target": lambda d: d.plan(rows=[chunk(0, [1], want=Want.PROMPT_LOGPROBS)]),
        "encodes images": lambda d: d.plan(encode=[Encode("digest", "name", 4)]),
    }
    for match, make in cases.items():
        runner, _ = tiny_runner()
        driver = Driver(runner)
        driver.run(rows=[chunk(0, PROMPT)], inits=[init(0, PROMPT, GREEDY)], new_blocks=driver.take(0, 11))
        with pytest.raises(ValueError, match=match):
            runner.run(make(driver))
        runner.close()


def test_too_many_rows_are_refused():
    runner, _ = tiny_runner(capacity=tiny_capacity(rows=2, tokens=4))
    with pytest.raises(ValueError, match="slots"):
        runner.run(Driver(runner).plan(decode=[0, 1, 2]))
    runner.close()


def test_a_failing_step_fails_every_later_one(driver):
    driver.run(rows=[chunk(0, PROMPT)], inits=[init(0, PROMPT)], new_blocks=driver.take(0, 40))
    driver.model.head = torch.zeros(1, 1)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            driver.run(decode=[0])


def test_unknown_operations_are_refused(driver):
    with pytest.raises(ValueError, match="sleep"):
        driver.runner.control("sleep")
