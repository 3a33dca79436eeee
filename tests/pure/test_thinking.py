"""A budget of reasoning in the engine: which tokens may come is worked out from the answer alone, for every step."""

from __future__ import annotations

import pytest
from tests.support.engines import SMALL
from tests.support.workloads import CountingMatcher, allowed

from tokenmill.config import EngineConfig
from tokenmill.engine.client import start_engine
from tokenmill.engine.fake import dream
from tokenmill.engine.thinking import ThinkingMatcher
from tokenmill.errors import RequestError
from tokenmill.types import GrammarSpec, Request, Sampling, Stop, Thinking

HERE = "tests.support.engines"
CLOSE, OPEN, STOP, NEW = 11, 12, 7, 30
VOCAB = SMALL.vocab_size


def bits(ids: list[int]) -> bytes:
    value = sum(1 << token for token in ids)
    return value.to_bytes(VOCAB // 8, "little")


def may_come(done: list[int], thinking: Thinking, grammar: bool) -> bytes:
    """By definition: where the answer is, then what may stand there."""
    everything = list(range(VOCAB))
    begins = thinking.inside or done[:1] == [OPEN]
    if begins and CLOSE not in done:
        spent = thinking.budget is not None and len(done) - (done[:1] == [OPEN]) >= thinking.budget
        if spent:
            return bits([CLOSE])
        if not grammar:
            return bits(everything)
        return bits([t for t in everything if t != STOP]) if thinking.grammar_waits else allowed(len(done))
    if not grammar:
        return bits(everything)
    waited = done.index(CLOSE) + 1 if begins and thinking.grammar_waits else 0
    return allowed(len(done) - waited)


def asked(name: str, thinking: Thinking, seed: int, grammar: bool) -> Request:
    prompt = tuple((seed * 5 + i * 7) % 39 for i in range(6))
    spec = GrammarSpec("choice", "") if grammar else None
    return Request(name, prompt, Sampling(seed=seed), Stop(NEW, 0, (STOP,)), grammar=spec, thinking=thinking)


@pytest.mark.parametrize("own", [False, True], ids=["here", "own process"])
async def test_reasoning_ends_where_its_budget_does(own: bool) -> None:
    """With and without a grammar that waits, from outside and inside, at budgets of 0 to 9 and without one."""
    config = EngineConfig()
    engine = await start_engine(f"{HERE}:small", config, own_process=own, compile_grammar=f"{HERE}:compilers")
    closed = 0
    try:
        for seed in range(60):
            inside, grammar = seed % 3 > 0, seed % 2 > 0
            budget = None if seed % 10 == 9 else seed % 10
            thinking = Thinking(CLOSE, OPEN, inside, budget, grammar_waits=inside and grammar)
            request = asked(f"r{seed}", thinking, seed, grammar)
            said = await engine.score(request)
            expected = dream(request, SMALL, seed, mask=lambda done, t=thinking, g=grammar: may_come(done, t, g))
            assert (list(said.token_ids), said.finish) == expected, (thinking, grammar)
            if inside and budget is not None and STOP not in said.token_ids[: budget + 1]:
                assert CLOSE in said.token_ids[: budget + 2]
                closed += 1
    finally:
        await engine.close()
    assert closed > 20


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_tokens_taken_back_leave_no_trace(waits: bool, inside: bool) -> None:
    thinking = Thinking(CLOSE, OPEN, inside, 4, grammar_waits=waits)
    way = [OPEN, 1, 2, CLOSE, 4, 6, 7]

    def after(tokens: list[int]) -> tuple[ThinkingMatcher, CountingMatcher]:
        inner = CountingMatcher()
        matcher = ThinkingMatcher(thinking, VOCAB, inner, (STOP,))
        for token in tokens:
            matcher.accept(token)
        return matcher, inner

    for length in range(len(way) + 1):
        for kept in range(length + 1):
            matcher, inner = after(way[:length])
            matcher.rollback(length - kept)
            expected, expected_inner = after(way[:kept])
            assert matcher.mask() == expected.mask() and inner.length == expected_inner.length


async def test_a_closing_token_that_is_none_is_refused() -> None:
    engine = await start_engine(f"{HERE}:small", EngineConfig(), own_process=False)
    try:
        with pytest.raises(RequestError, match="ends reasoning"):
            await engine.score(asked("r", Thinking(VOCAB), 1, False))
    finally:
        await engine.close()
