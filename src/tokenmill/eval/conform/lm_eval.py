"""The requests of lm-eval's `local-completions` and `local-chat-completions`, and what it reads of the answers."""

from __future__ import annotations

import math

from tokenmill.eval.conform.probe import Probe, expect

GROUP = "lm_eval"
SCORE = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}


def scores(probe: Probe) -> None:
    """loglikelihood: echoed ids with log-probabilities, one entry a token, the first without one"""
    prompts = [[5, 6, 7, 8], [9, 10]]
    body = probe.complete(prompts, **SCORE)
    for prompt, choice in zip(prompts, sorted(body["choices"], key=lambda c: c["index"]), strict=True):
        logprobs = choice["logprobs"]
        values, tops = logprobs["token_logprobs"], logprobs["top_logprobs"]
        expect(len(values) == len(tops) == len(prompt) + 1, f"{len(values)} entries for {len(prompt)} ids and 1 more")
        expect(all(isinstance(v, float) and v <= 0 for v in values[1:]), "a log-probability is missing")
        expect(all(isinstance(top, dict) and top for top in tops[1:]), "alternatives are missing")
        # A token is greedy where its value is the best one.
        pairs = zip(values[1:], tops[1:], strict=True)
        expect(all(max(top.values()) >= value - 1e-6 for value, top in pairs), "an alternative is below the token")


def context(probe: Probe) -> None:
    """a token's score does not depend on what follows it"""
    short = probe.complete([5, 6, 7], **SCORE)["choices"][0]["logprobs"]["token_logprobs"][1:3]
    long = probe.complete([5, 6, 7, 8, 9], **SCORE)["choices"][0]["logprobs"]["token_logprobs"][1:3]
    near = all(math.isclose(a, b, rel_tol=1e-2, abs_tol=1e-2) for a, b in zip(short, long, strict=True))
    expect(near, f"{short} and {long}")


def generates(probe: Probe) -> None:
    """generation: a list of prompts with stop strings, greedy"""
    fields = {"max_tokens": 8, "stop": ["\n\n", "Question:"], "temperature": 0, "seed": 1234}
    body = probe.complete(["Question: 1+1\nAnswer:"], **fields)
    expect(isinstance(body["choices"][0]["text"], str), "no text")


def chats(probe: Probe) -> None:
    """chat generation: messages with stop strings, max_tokens and a seed"""
    turns = [{"role": "user", "type": "text", "content": "1+1"}]
    body = probe.chat(messages=turns, stop=["\n\n"], temperature=0, seed=1234)
    expect(isinstance(body["choices"][0]["message"]["content"], str), "no text")


CHECKS = (scores, context, generates, chats)
