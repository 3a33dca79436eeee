"""Which form of a model to serve, from what was measured: plain or quantized weights, plain or quantized KV cache.

The flow is the one of practice: the plain model first, then its KV cache quantized, then its weights, then both; a step
that costs too much quality is taken back. Pure: trials and needs in, one recommendation with its reasons out.

What decides, in this order: quality (KL under the limit, no fewer right answers than `SLACK` allows), whether what is
needed fits, and then where the machine gains most. With ample memory nothing is gained by rounding; without a GPU a
model's weights are what a step waits for; long outputs and little memory are the KV cache's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenmill.eval.compare import Comparison
from tokenmill.eval.prompts import Answers

SLACK = 0.05
AMPLE = 4
LITTLE = 2
LONG_OUTPUT_TOKENS = 1024
# Below this share of the other's tokens/s a quantized model is slower, whatever the rule of thumb says.
SLOWER = 0.8


@dataclass(frozen=True, slots=True)
class Needs:
    """What is asked of the machine. need_tokens: of all sequences at once. min_pass: right answers, as a share, below
    which the plain model itself fails. max_perplexity: the same for the text."""

    need_tokens: int
    output_tokens: int
    gpu: bool
    max_kl: float
    min_pass: float = 0.8
    max_perplexity: float | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One form as it was served. tokens: of KV cache that fit. `quality` None: this is the plain model itself."""

    weights: str
    kv: str
    quality: Comparison | None
    perplexity: float
    answers: Answers
    weights_bytes: int
    token_bytes: int
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.weights} weights, {'plain' if self.kv == 'auto' else self.kv} KV"

    @property
    def kl(self) -> float:
        return 0.0 if self.quality is None else self.quality.kl


@dataclass(frozen=True, slots=True)
class Advice:
    """fits: whether the choice holds what is needed."""

    chosen: Trial
    fits: bool
    reasons: tuple[str, ...]


def failure(plain: Trial, needs: Needs) -> str:
    """Why no form of this model will do; "" where the plain model passes the user's check."""
    answers = plain.answers
    if answers.judged and answers.share < needs.min_pass:
        return (f"the plain model answers {answers.passed} of {answers.judged} prompts right, below "
                f"{needs.min_pass:.0%}")  # fmt: skip
    if needs.max_perplexity is not None and plain.perplexity > needs.max_perplexity:
        return f"the plain model's perplexity on this text is {plain.perplexity:.4g}, above {needs.max_perplexity:g}"
    return ""


def refusal(trial: Trial, plain: Trial, needs: Needs) -> str:
    """Why a form loses too much; "" where it does not."""
    if not trial.kl <= needs.max_kl:
        return f"KL {trial.kl:.4g} is above {needs.max_kl:g}"
    if trial.answers.share < plain.answers.share - SLACK:
        return f"{trial.answers.passed} of {trial.answers.judged} answers are right, plain has {plain.answers.passed}"
    return ""


def advise(trials: Sequence[Trial], needs: Needs) -> Advice:
    """The first trial is the plain model."""
    plain = trials[0]
    sound = [t for t in trials if not refusal(t, plain, needs)]
    reasons = [f"{t.name} is out: {why}" for t in trials if (why := refusal(t, plain, needs))]
    fitting = [t for t in sound if t.tokens >= needs.need_tokens]
    if not fitting:
        most = max(sound, key=lambda t: t.tokens)
        reasons.append(f"no form holds the {needs.need_tokens} tokens that are needed; {most.name} holds most")
        return Advice(most, False, tuple(reasons))
    chosen = _choose(fitting, needs, reasons)
    return Advice(chosen, True, tuple(reasons))


def _choose(fitting: list[Trial], needs: Needs, reasons: list[str]) -> Trial:
    long_output = needs.output_tokens >= LONG_OUTPUT_TOKENS
    plain = [t for t in fitting if t.weights == "plain" and t.kv == "auto"]
    if needs.gpu and not long_output and plain and plain[0].tokens >= AMPLE * needs.need_tokens:
        reasons.append(f"memory is ample: the plain model holds {plain[0].tokens} tokens, {needs.need_tokens} needed")
        return plain[0]
    if plain or any(t.weights == "plain" for t in fitting):
        fitting = _by_weights(fitting, needs, reasons)
    else:
        reasons.append("only quantized weights leave room for the tokens that are needed")
    return _by_kv(fitting, needs, long_output, reasons)


def _by_weights(fitting: list[Trial], needs: Needs, reasons: list[str]) -> list[Trial]:
    """Without a GPU quantized weights, unless this machine was measured to be slower with them."""
    made = [t for t in fitting if t.weights != "plain"]
    plain = [t for t in fitting if t.weights == "plain"]
    if needs.gpu or not made:
        return plain
    fast, slow = (max(t.answers.tokens_per_s for t in group) for group in (made, plain))
    if fast < SLOWER * slow:
        reasons.append(f"no GPU leans to quantized weights, but here they give {fast:.0f} tokens/s against {slow:.0f}")
        return plain
    reasons.append("without a GPU each step waits for the weights: quantized ones are less to read")
    return made


def _by_kv(fitting: list[Trial], needs: Needs, long_output: bool, reasons: list[str]) -> Trial:
    plain = [t for t in fitting if t.kv == "auto"]
    made = [t for t in fitting if t.kv != "auto"]
    little = not plain or max(t.tokens for t in plain) < LITTLE * needs.need_tokens
    if made and (long_output or little):
        reasons.append(f"outputs of {needs.output_tokens} tokens fill the cache: quantized KV holds more of them"
                       if long_output else "memory is little: quantized KV holds more tokens")  # fmt: skip
        return min(made, key=lambda t: t.kl)
    if plain:
        reasons.append("a plain KV cache holds what is needed, and costs no quality")
    return min(plain or made, key=lambda t: t.kl)
