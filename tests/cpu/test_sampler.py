"""The sampler against transformers' logits processors and closed forms; its draws against the distribution they are of.

Expected scores come from transformers (one row at a time), the race from the documented rule: the token
with the largest score - log E wins, E exponential. Equality is exact over hundreds of rows that differ in everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import transformers as hf
from torch.utils._python_dispatch import TorchDispatchMode

from tokenmill.engine.contract import SlotInit
from tokenmill.kernels.reference.cutoffs import cutoffs
from tokenmill.runner import noise
from tokenmill.runner.sampler import PLAIN, RowSampling, SampleOps, finite_rows, raw_logprobs, sample
from tokenmill.runner.slots import SlotTables, Stage, TableSizes, pack_changes, stages_of
from tokenmill.types import Sampling


@dataclass
class Case:
    """Rows with their slots, positions and what they hold."""

    inits: list[SlotInit]
    outputs: list[list[int]]
    vocab: int
    positions: list[int] = field(default_factory=list)
    ops: SampleOps = PLAIN

    @staticmethod
    def of(samplings: list[Sampling], vocab: int, seed: int = 0, **more: object) -> Case:
        """Prompts and outputs of random tokens, many of them repeated."""
        draw = np.random.default_rng(seed)
        inits, outputs, positions = [], [], []
        for slot, sampling in enumerate(samplings):
            prompt, output = draw.integers(0, vocab, 9).tolist(), draw.integers(0, vocab, 6).tolist() * 2
            history = np.array(prompt + output, np.int32) if sampling.needs_history else None
            inits.append(SlotInit(slot, 0, sampling, int(draw.integers(0, 2**63)), 9, history=history, **more))
            outputs.append(output)
            positions.append(len(prompt) + len(output))
        return Case(inits, outputs, vocab, positions)

    def prompt(self, row: int) -> list[int]:
        history = self.inits[row].history
        return [] if history is None else history[:9].tolist()

    def sample(self, logits: torch.Tensor, rows: list[int] | None = None) -> list[int]:
        """What the sampler draws for these rows, through the tables as in a step."""
        rows = list(range(len(self.inits))) if rows is None else rows
        tables = SlotTables(TableSizes(len(self.inits), (1,), self.vocab), torch.device("cpu"))
        part = pack_changes(self.inits, np.zeros((0, 4), np.int32), 1)
        tables.apply({name: torch.from_numpy(array) for name, array in part.items()})
        stages = Stage.NONE
        for row in rows:
            stages |= stages_of(self.inits[row])
        positions = torch.tensor([self.positions[row] for row in rows])
        state = RowSampling.of(tables, torch.tensor(rows), positions, stages)
        return sample(logits[rows].clone(), state, stages, self.candidates(rows), self.ops).tolist()

    def candidates(self, rows: list[int]) -> int:
        """The largest top-k where every row that top-p cuts has one."""
        samplings = [self.inits[row].sampling for row in rows if not self.inits[row].sampling.greedy]
        free = any(s.top_p < 1 and not s.top_k for s in samplings)
        return 0 if free else max((s.top_k for s in samplings), default=0)

    def expected(self, logits: torch.Tensor, row: int) -> int:
        """By transformers' processors, in the order that `Sampling` documents."""
        s, x = self.inits[row].sampling, logits[row : row + 1].clone()
        ids = torch.tensor([self.prompt(row) + self.outputs[row]])
        x = self.adjusted(x, row, ids)
        if s.greedy:
            return int(x.argmax())
        x = hf.TemperatureLogitsWarper(s.temperature)(ids, x)
        x = hf.TopKLogitsWarper(s.top_k)(ids, x) if s.top_k else x
        x = hf.TopPLogitsWarper(s.top_p)(ids, x) if s.top_p < 1 else x
        x = hf.MinPLogitsWarper(s.min_p)(ids, x) if s.min_p else x
        keys = noise.row_keys(torch.tensor([self.inits[row].seed]), torch.tensor([self.positions[row]]))
        return int((x - noise.exponential(keys, self.vocab).log()).argmax())

    def adjusted(self, x: torch.Tensor, row: int, ids: torch.Tensor) -> torch.Tensor:
        init = self.inits[row]
        s, out = init.sampling, self.outputs[row]
        if s.logit_bias:
            x = hf.SequenceBiasLogitsProcessor({(token,): value for token, value in s.logit_bias})(ids, x)
        if s.bad_token_ids:
            x = hf.NoBadWordsLogitsProcessor([[token] for token in s.bad_token_ids], eos_token_id=[])(ids, x)
        if init.min_tokens:
            early = hf.MinLengthLogitsProcessor(init.min_tokens, list(init.stop_ids))
            x = early(torch.zeros(1, self.positions[row]), x)
        if s.repetition_penalty != 1:
            x = hf.RepetitionPenaltyLogitsProcessor(s.repetition_penalty)(ids, x)
        # Presence and frequency as OpenAI's reference states them: over the answer alone.
        counts = torch.bincount(torch.tensor(out), minlength=self.vocab)
        return x - s.frequency_penalty * counts - s.presence_penalty * (counts > 0)


def logits_of(rows: int, vocab: int, scale: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def all_kinds(count: int, vocab: int, seed: int = 1) -> list[Sampling]:
    """Rows that differ in every parameter; a good part has each stage, some have none."""
    r = np.random.default_rng(seed)
    some = lambda value, default: value if r.random() < 0.5 else default
    return [
        Sampling(
            temperature=some(0.0, r.uniform(0.2, 2.0)) if r.random() < 0.3 else r.uniform(0.2, 2.0),
            top_k=some(int(r.integers(1, 80)), 0),
            top_p=some(r.uniform(0.1, 0.99), 1.0),
            min_p=some(r.uniform(0.001, 0.3), 0.0),
            repetition_penalty=some(r.uniform(0.7, 2.0), 1.0),
            presence_penalty=some(r.uniform(-1, 2), 0.0),
            frequency_penalty=some(r.uniform(-1, 2), 0.0),
            logit_bias=some(tuple((int(t), float(r.normal() * 5)) for t in set(r.integers(0, vocab, 5).tolist())), ()),
            bad_token_ids=some(tuple(r.integers(0, vocab, 3).tolist()), ()),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(("vocab", "scale"), [(300, 3.0), (3000, 4.0), (3000, 0.5)])
def test_rows_that_differ_in_everything_draw_what_transformers_allows(vocab, scale):
    """Vocabulary 3,000 takes the short cut over the best tokens; flat logits make it fall back."""
    case = Case.of(all_kinds(300, vocab), vocab)
    logits = logits_of(300, vocab, scale)
    assert case.sample(logits) == [case.expected(logits, row) for row in range(300)]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(top_k=5),
        Sampling(top_k=5000),
        Sampling(top_p=0.6),
        Sampling(top_p=1e-6),
        Sampling(top_k=20, top_p=0.5),
        Sampling(min_p=0.1),
        Sampling(min_p=1.0),
        Sampling(temperature=0.0, repetition_penalty=1.7, presence_penalty=0.4, frequency_penalty=0.9),
        Sampling(temperature=0.0, logit_bias=((7, 100.0), (8, -3.0))),
        Sampling(temperature=0.0, bad_token_ids=tuple(range(280))),
        Sampling(temperature=1e-9),
    ],
    ids=str,
)
def test_one_parameter_at_a_time(sampling):
    case = Case.of([sampling] * 64, 300)
    logits = logits_of(64, 300, 2.0)
    assert case.sample(logits) == [case.expected(logits, row) for row in range(64)]


def test_stop_ids_wait_for_their_position():
    """Half the rows stand below min_tokens, half at it."""
    case = Case.of([Sampling(temperature=0.0)] * 8, 300, min_tokens=21, stop_ids=(4, 5))
    case.positions = [20, 21] * 4
    logits = logits_of(8, 300, 1.0)
    logits[:, 4], logits[:, 5] = 50.0, 49.0
    drawn = case.sample(logits)
    assert drawn == [case.expected(logits, row) for row in range(8)]
    assert [token in (4, 5) for token in drawn] == [False, True] * 4


def test_a_row_draws_the_same_alone_in_any_batch_and_in_any_slot():
    case = Case.of(all_kinds(48, 3000, seed=3), 3000)
    logits = logits_of(48, 3000, 3.0)
    together = case.sample(logits)
    assert [case.sample(logits, [row])[0] for row in range(48)] == together
    order = np.random.default_rng(5).permutation(48).tolist()
    assert case.sample(logits, order) == [together[row] for row in order]


def test_greedy_takes_the_lowest_id_of_equals():
    case = Case.of([Sampling(temperature=0.0), Sampling(top_k=1)], 50)
    logits = torch.zeros(2, 50)
    logits[:, [30, 12, 41]] = 2.0
    assert case.sample(logits) == [12, 12]


class OperatorCount(TorchDispatchMode):
    """Operators that compute something: views cost nothing and their number is torch's own affair."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += "view" not in str(func)
        return func(*args, **(kwargs or {}))


def test_no_row_is_looped_over():
    """As many operators for 256 rows that differ as for 2."""

    def calls(count: int) -> int:
        bias = tuple((token, 1.0) for token in range(5))
        every = [Sampling(0.5, 9, 0.8, 0.1, 1.5, 0.5, 0.5, bias, (7, 8, 9)), Sampling(top_p=0.5)]
        case = Case.of(every + all_kinds(count - 2, 300), 300)
        with OperatorCount() as counted:
            case.sample(logits_of(count, 300, 2.0))
        return counted.calls

    assert calls(256) == calls(2)


def test_draws_follow_the_distribution():
    """Chi-square over 40,000 positions of one seed: 19 degrees of freedom, 43.8 is the 99.9 % point."""
    logits = torch.linspace(-2, 2, 20).repeat(40_000, 1)
    keys = noise.row_keys(torch.full((40_000,), 1234), torch.arange(40_000))
    drawn = (logits - noise.exponential(keys, 20).log()).argmax(-1)
    expected = logits[0].softmax(-1) * 40_000
    chi_square = float(((torch.bincount(drawn, minlength=20) - expected) ** 2 / expected).sum())
    assert chi_square < 43.8


def test_noise_is_exponential_and_independent():
    """Kolmogorov-Smirnov distance to Exp(1), and no correlation between neighbours in seed, position and token."""
    seeds, positions = torch.meshgrid(torch.arange(40), torch.arange(50), indexing="ij")
    draws = noise.exponential(noise.row_keys(seeds.flatten(), positions.flatten()), 200)
    assert float(draws.min()) > 0
    assert bool(draws.isfinite().all())
    ranked = draws.flatten().double().sort().values
    distance = (1 - (-ranked).exp() - torch.arange(1, len(ranked) + 1) / len(ranked)).abs().max()
    # 1.95 / sqrt(n) is the 99.9 % point.
    assert float(distance) < 1.95 / len(ranked) ** 0.5
    cube = draws.view(40, 50, 200).double() - 1.0
    for a, b in ((cube[1:], cube[:-1]), (cube[:, 1:], cube[:, :-1]), (cube[..., 1:], cube[..., :-1])):
        assert abs(float((a * b).mean())) < 4 / a.numel() ** 0.5


def test_large_seeds_count_in_every_bit():
    keys = noise.row_keys(torch.tensor([1 << bit for bit in range(63)] + [0]), torch.zeros(64))
    first = noise.exponential(keys, 64).argmin(-1)
    assert len(set(keys.tolist())) == 64
    assert len(set(first.tolist())) > 30


def test_log_probabilities_are_those_of_log_softmax():
    logits = logits_of(16, 500, 5.0)
    tokens = torch.arange(16) * 3
    logprobs, ids, values = raw_logprobs(logits, tokens, 20)
    reference = logits.double().log_softmax(-1)
    torch.testing.assert_close(logprobs.double(), reference.gather(1, tokens[:, None])[:, 0], atol=1e-5, rtol=0)
    assert ids.tolist() == reference.topk(20).indices.tolist()
    torch.testing.assert_close(values.double(), reference.topk(20).values, atol=1e-5, rtol=0)
    assert raw_logprobs(logits, tokens, 0)[1].shape == (16, 0)


@pytest.mark.parametrize("vocab", [64, 61])
def test_masks_forbid_what_they_do_not_name(vocab):
    allowed = np.random.default_rng(0).random((3, vocab)) < 0.2
    bits = torch.from_numpy(np.packbits(allowed, axis=1, bitorder="little"))
    logits = logits_of(5, vocab, 1.0)
    before = logits.clone()
    PLAIN.mask_rows(logits, torch.tensor([4, 0, 2]), bits)
    for row, mask in zip((4, 0, 2), allowed, strict=True):
        assert (logits[row] == before[row].masked_fill(torch.from_numpy(~mask), -torch.inf)).all()
    assert (logits[[1, 3]] == before[[1, 3]]).all()


def test_rows_with_nan_or_infinity_are_seen():
    logits = logits_of(4, 300, 1e4)
    logits[1, 7], logits[2, 299] = torch.nan, torch.inf
    assert finite_rows(logits).tolist() == [1, 0, 0, 1]


def test_tokens_by_a_backends_cutoffs_are_those_of_transformers():
    """The op's thresholds in place of the sampler's own, for rows that differ in everything."""
    vocab = 300
    case = Case.of(all_kinds(60, vocab), vocab)
    case.ops = SampleOps(cutoffs=cutoffs)
    logits = logits_of(60, vocab, 3.0)
    assert case.sample(logits) == [case.expected(logits, row) for row in range(60)]
