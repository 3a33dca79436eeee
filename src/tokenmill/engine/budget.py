"""What one step may hold: tokens always, and microseconds where an inter-token target and the runner's costs are known.

The target bounds what prompt chunks add to a step that also has running rows. A chunk of n tokens on a context of c
costs n * token_us + n * (c + n / 2) / 1000 * token_kcontext_us. However slow the step is already, `least_chunk` tokens
of prompt may run, or a full batch would keep newcomers out for ever.
"""

from __future__ import annotations

from math import sqrt

from tokenmill.engine.contract import StepCost


class Budget:
    """Counts down over one plan."""

    def __init__(self, tokens: int, least_chunk: int) -> None:
        self.tokens = tokens
        self.least_chunk = least_chunk
        self._us: float | None = None
        self._cost = StepCost()

    def limit_time(self, target_us: float, cost: StepCost, rows: int, context_tokens: int) -> None:
        """Prompt chunks beside `rows` running rows with `context_tokens` in all keep the step under `target_us`."""
        spent = cost.step_us + rows * (cost.row_us + cost.token_us) + context_tokens / 1000 * cost.token_kcontext_us
        self._us = target_us - spent
        self._cost = cost

    def chunk(self, wanted: int, context: int) -> int:
        """How many of `wanted` tokens at `context` may run; 0 when the step is full."""
        most = min(wanted, self.tokens)
        if self._us is None:
            return most
        return min(most, max(self._affordable(context), self.least_chunk))

    def spend(self, tokens: int, context: int) -> None:
        self.tokens -= tokens
        if self._us is not None:
            kcontext = tokens * (context + tokens / 2) / 1000
            self._us -= self._cost.row_us + tokens * self._cost.token_us + kcontext * self._cost.token_kcontext_us
            self.least_chunk = max(self.least_chunk - tokens, 0)

    def _affordable(self, context: int) -> int:
        """Largest n with row_us + n * token_us + n * (context + n / 2) * k <= us left (k per token and token)."""
        assert self._us is not None
        left = self._us - self._cost.row_us
        if left <= 0:
            return 0
        k = self._cost.token_kcontext_us / 1000
        linear = self._cost.token_us + context * k
        if k == 0.0:
            return self.tokens if linear == 0.0 else int(left / linear)
        return int((sqrt(linear * linear + 2 * k * left) - linear) / k)
