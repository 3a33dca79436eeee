"""Windows of perplexity against a direct sum over a model that is a formula."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import ConfigError
from tokenmill.eval.perplexity import perplexity, spans
from tokenmill.types import Request, StepOutput, TokenLogprobs, Want


def logprob(context: tuple[int, ...], token: int) -> float:
    """Depends on all of the context, so that a wrong window shows."""
    return -0.01 - ((token * 31 + sum((i + 1) * t for i, t in enumerate(context))) % 97) / 40


class FormulaEngine:
    async def score(self, request: Request) -> StepOutput:
        assert request.want == Want.PROMPT_LOGPROBS and request.stop.max_new_tokens == 0
        ids = request.prompt_ids
        rest = tuple(TokenLogprobs(t, logprob(ids[:i], t)) for i, t in enumerate(ids) if i)
        return StepOutput(prompt_logprobs=(None, *rest))


def directly(ids: tuple[int, ...], window: int, stride: int) -> tuple[float, int]:
    """The usual strided loop: a window scores what no earlier one did."""
    total, count, scored = 0.0, 0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        for i in range(max(scored, begin + 1), end):
            total -= logprob(ids[begin:i], ids[i])
            count += 1
        scored = end
        if end == len(ids):
            break
    return total / count, count


@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_every_token_is_counted_once(num_tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window - 1))
    counted = [i for s in spans(num_tokens, window, stride) for i in range(s.count_from, s.stop)]
    assert counted == list(range(1, num_tokens))


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 8), (16, 3), (100, 100), (2, 1)])
async def test_equals_the_direct_sum(window: int, stride: int) -> None:
    ids = tuple((i * 7919) % 50 for i in range(77))
    found = await perplexity(FormulaEngine(), ids, window, stride)  # type: ignore[arg-type]
    nll, count = directly(ids, window, stride)
    assert found.tokens == count and found.nll == pytest.approx(nll) and found.value == pytest.approx(math.exp(nll))


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (8, 0), (8, 9)])
def test_windows_that_cannot_cover_are_refused(window: int, stride: int) -> None:
    with pytest.raises(ConfigError, match="window is"):
        spans(10, window, stride)


async def test_a_text_without_context_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        await perplexity(FormulaEngine(), (1,), 8, 8)  # type: ignore[arg-type]
