"""The recommendation of `lite advise`, from trials whose figures are made up; prompts files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.errors import FormatError
from tokenmill.eval.advise import Needs, Trial, advise, failure
from tokenmill.eval.compare import Comparison
from tokenmill.eval.prompts import Answers, Prompt, read_prompts

NEED = 16_384


def trial(
    weights: str, kv: str, kl: float, tokens: int, *, right: int = 10, rate: float = 100.0, perplexity: float = 9.0
) -> Trial:
    plain = weights == "plain" and kv == "auto"
    quality = None if plain else Comparison(kl, 0.97, 9.0, perplexity, 2048)
    answers = Answers((), right, 10, int(rate * 10), 10.0)
    return Trial(weights, kv, quality, perplexity, answers, 1000, 100, tokens)


def four(room: int, kl: tuple[float, float, float] = (0.01, 0.01, 0.02), rate: float = 100.0) -> list[Trial]:
    """Plain, KV, W4, both: KV of 4 bits holds 3.5 times the tokens, W4 half as many more."""
    return [
        trial("plain", "auto", 0.0, room), trial("plain", "int4", kl[0], room * 7 // 2),
        trial("W4", "auto", kl[1], room * 3 // 2, rate=rate), trial("W4", "int4", kl[2], room * 5, rate=rate),
    ]  # fmt: skip


def needs(gpu: bool = True, output_tokens: int = 256, max_kl: float = 0.05, need: int = NEED) -> Needs:
    return Needs(need, output_tokens, gpu, max_kl)


@pytest.mark.parametrize(
    ("room", "asked", "wanted", "why"),
    [
        (NEED * 8, needs(), "plain weights, plain KV", "ample"),
        (NEED * 8, needs(output_tokens=4000), "plain weights, int4 KV", "outputs of 4000"),
        (NEED * 3 // 2, needs(), "plain weights, int4 KV", "memory is little"),
        (NEED // 4, needs(), "W4 weights, int4 KV", "only quantized weights"),
        (NEED * 8, needs(gpu=False), "W4 weights, plain KV", "without a GPU"),
        (NEED * 8, needs(gpu=False, output_tokens=4000), "W4 weights, int4 KV", "outputs of 4000"),
        (NEED * 8, needs(gpu=False, max_kl=0.005), "plain weights, plain KV", "KL 0.01 is above 0.005"),
        (NEED * 3, needs(), "plain weights, plain KV", "costs no quality"),
    ],
)
def test_what_is_recommended(room: int, asked: Needs, wanted: str, why: str) -> None:
    advice = advise(four(room), asked)
    assert advice.chosen.name == wanted and advice.fits
    assert any(why in reason for reason in advice.reasons), advice.reasons


def test_weights_that_were_measured_slower_are_not_recommended_for_speed() -> None:
    advice = advise(four(NEED * 8, rate=50.0), needs(gpu=False))
    assert advice.chosen.name == "plain weights, plain KV" and any("50 tokens/s" in r for r in advice.reasons)


def test_a_form_that_loses_answers_is_out_whatever_its_kl() -> None:
    trials = four(NEED * 8)
    trials[2] = trial("W4", "auto", 0.001, NEED * 12, right=8)
    trials[3] = trial("W4", "int4", 0.001, NEED * 40, right=8)
    advice = advise(trials, needs(gpu=False))
    assert advice.chosen.name == "plain weights, plain KV"
    assert any("8 of 10 answers" in reason for reason in advice.reasons)


def test_where_nothing_fits_the_roomiest_is_named_and_said_to_be_too_small() -> None:
    advice = advise(four(100), needs())
    assert advice.chosen.name == "W4 weights, int4 KV" and not advice.fits


def test_a_kl_that_is_no_number_is_over_every_limit() -> None:
    trials = [trial("plain", "auto", 0.0, NEED // 2), trial("plain", "int4", float("nan"), NEED * 9)]
    assert advise(trials, needs()).chosen.kv == "auto"


def test_the_plain_models_own_failure() -> None:
    plain = trial("plain", "auto", 0.0, NEED, right=7)
    assert "7 of 10 prompts right" in failure(plain, needs())
    assert failure(trial("plain", "auto", 0.0, NEED, right=8), needs()) == ""
    assert "perplexity" in failure(plain, Needs(NEED, 256, True, 0.05, 0.5, max_perplexity=8.5))


def test_prompts_files(tmp_path: Path) -> None:
    jsonl, plain = tmp_path / "p.jsonl", tmp_path / "p.txt"
    jsonl.write_text('{"prompt": "1+1?", "expect": "2"}\n\n{"messages": [{"role": "user", "content": "x"}], '
                     '"expect": ["a", "b"], "regex": "^a"}\n')  # fmt: skip
    plain.write_text("first\n\nsecond \n")
    one, two = read_prompts(jsonl)
    assert one.passes("it is 2") and not one.passes("3") and one.judged
    assert two.passes("a b") and not two.passes("b a") and not two.passes("a")
    assert read_prompts(plain) == [Prompt(({"role": "user", "content": t},)) for t in ("first", "second")]


@pytest.mark.parametrize("line", ["{", "[1]", '{"text": "x"}', '{"prompt": "x", "regex": "("}', '{"messages": ["x"]}'])
def test_a_bad_prompt_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "ok"}\n' + line + "\n")
    with pytest.raises(FormatError, match="line 2"):
        read_prompts(file)
    file.write_text("\n")
    with pytest.raises(FormatError, match="no prompt"):
        read_prompts(file)
