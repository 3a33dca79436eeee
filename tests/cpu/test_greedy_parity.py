"""The small form of scripts/greedy_parity.py: the whole engine on tiny checkpoints against transformers' generation."""

from __future__ import annotations

import pytest
import torch
from scripts.greedy_parity import MODES, Outcome, Reference, compare, parse, table

from tokenmill.models.tiny import make_tiny


@pytest.mark.parametrize("family", ["llama", "internlm2"])
def test_greedy_answers_are_transformers_however_the_work_is_cut(tmp_path, family):
    folder = make_tiny(family, tmp_path, seed=3)
    outcomes = compare(folder, parse([str(folder), "--prompts", "8", "--tokens", "24"]))
    assert [one.mode for one in outcomes] == list(MODES)
    assert all(one.good for one in outcomes), table(outcomes)
    assert [one.identical + one.tied for one in outcomes] == [8] * len(MODES)


def test_a_wrong_token_is_seen(tmp_path):
    """The judge itself: an answer with one token replaced differs; with the reference's own it does not."""
    reference = Reference(make_tiny("llama", tmp_path), [(5, 6, 7)], 8)
    wrong = list(reference.answers[0])
    wrong[4] = (wrong[4] + 1) % 512
    outcome = Outcome(MODES[0])
    reference.judge(outcome, [wrong])
    reference.judge(outcome, [reference.answers[0]])
    assert (outcome.identical, outcome.different, outcome.good) == (1, 1, False)


def test_a_tie_counts_as_agreement(tmp_path):
    """Two rows of the head made equal: either token may come."""
    reference = Reference(make_tiny("llama", tmp_path), [(5, 6, 7)], 1)
    first = reference.answers[0][0]
    twin = (first + 1) % 512
    with torch.no_grad():
        reference.model.lm_head.weight[twin] = reference.model.lm_head.weight[first]
    outcome = Outcome(MODES[0])
    reference.judge(outcome, [[twin]])
    assert (outcome.tied, outcome.different) == (1, 0)
