"""Rope tables of every scaling kind: published golden values, transformers' own tables, what a request's base does."""

from __future__ import annotations

import math

import pytest
import torch

from tokenmill.engine.contract import RopeBase
from tokenmill.errors import ConfigError
from tokenmill.layers.rope import Rope, RopeFacts, attention_scale, frequencies, logn_factors
from tokenmill.models.reading import rope_facts

SHORT = tuple(1.0 + 0.05 * i for i in range(32))
LONG = tuple(1.5 + 0.4 * i for i in range(32))


@pytest.mark.parametrize(
    ("base", "factor", "trained", "tokens", "wanted"),
    [
        (1e6, 2.0, 32768, 32768, 1e6),
        (1e6, 2.0, 32768, 40000, 1449795.742),
        (1e6, 2.0, 32768, 65536, 3052773.675),
        (1e6, 2.0, 32768, 200000, 11645259.31),
        (5e7, 2.5, 262144, 1048576, 439684961.2),
        (5e7, 6.0, 32768, 131072, 995454195.9),
        (1e4, 1.0, 2048, 4096, 20221.262),
        (1e4, 1.0, 2048, 100, 1e4),
    ],
)
def test_dynamic_ntk_bases_are_the_published_ones(base, factor, trained, tokens, wanted):
    facts = RopeFacts("dynamic", base, 128, trained, factor)
    assert facts.base_rule().for_prompt(tokens) == pytest.approx(wanted, rel=5e-8)


@pytest.mark.parametrize(("tokens", "alpha"), [(2048, 1), (2049, 3), (4096, 3), (5000, 7), (8192, 7), (8193, 15)])
def test_qwen_bases_are_the_published_ones(tokens, alpha):
    rule = RopeFacts("qwen", 1e4, 128, 2048).base_rule()
    assert rule.for_prompt(tokens) == pytest.approx(1e4 * alpha ** (128 / 126), rel=1e-12)


def test_llama3_frequencies_are_the_published_ones():
    facts = RopeFacts("llama3", 5e5, 128, 131072, 8.0, 8192, 1.0, 4.0)
    wanted = [8.146172e-01, 3.760603e-02, 3.211446e-03, 2.166571e-03, 1.371894e-03, 5.248460e-04, 3.428102e-05,
              3.068926e-07]
    got = frequencies(facts)[[1, 16, 28, 29, 30, 32, 40, 63]]
    torch.testing.assert_close(got, torch.tensor(wanted), rtol=5e-7, atol=0)


def test_yarn_frequencies_and_scale_are_the_published_ones():
    facts = RopeFacts("yarn", 1e6, 128, 131072, 4.0, 32768)
    wanted = [3.162278e-02, 5.375321e-03, 6.029411e-04, 4.445699e-05, 7.905694e-06, 3.102344e-07]
    torch.testing.assert_close(frequencies(facts)[[16, 24, 32, 40, 48, 63]], torch.tensor(wanted), rtol=5e-7, atol=0)
    assert attention_scale(facts) == pytest.approx(1.1386294361, rel=1e-9)


def test_logn_factors_are_the_published_ones():
    """Given by 1-based position."""
    got = logn_factors(torch.tensor([1, 2048, 2049, 4096, 8192]) - 1, 2048)
    torch.testing.assert_close(got, torch.tensor([1.0, 1.0, 1.0000640, 1.0909091, 1.1818182]), rtol=2e-7, atol=0)


SCALINGS = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-mscale": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.8,
                    "mscale_all_dim": 0.5, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn-not-truncated": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                           "truncate": False, "attention_factor": 1.25},
    "longrope": {"type": "longrope", "short_factor": list(SHORT), "long_factor": list(LONG), "factor": 4.0,
                 "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("tokens", [50, 64, 65, 100, 250])
@pytest.mark.parametrize("name", SCALINGS)
def test_tables_equal_those_of_transformers(name, tokens):
    """A prompt of `tokens` in one go: P is 64, so that every limit is crossed."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = {"hidden_size": 256, "num_attention_heads": 4, "rope_theta": 1e5, "rope_scaling": SCALINGS[name],
              "max_position_embeddings": 256 if "original_max_position_embeddings" in (SCALINGS[name] or {}) else 64}
    facts = rope_facts(config, 64)
    rule = facts.base_rule()
    bases_T = torch.full((tokens,), rule.for_prompt(tokens) if rule else 0.0)
    cos, sin = Rope(facts, "cpu")(bases_T, torch.arange(tokens))
    theirs = LlamaRotaryEmbedding(LlamaConfig(**config))(torch.zeros(1, tokens, 4), torch.arange(tokens)[None])
    for ours, wanted in zip((cos, sin), theirs, strict=True):
        torch.testing.assert_close(torch.cat((ours, ours), -1), wanted[0], rtol=1e-6, atol=2e-5)


def test_rows_of_one_step_have_their_own_bases():
    """Frozen per request: a token's table depends on its own base and position only."""
    facts = RopeFacts("dynamic", 1e4, 64, 128, 2.0)
    rope, far = Rope(facts, "cpu"), facts.base_rule().for_prompt(400)
    cos, _ = rope(torch.tensor([0.0, far, 1e4]), torch.tensor([77, 77, 77]))
    exponents = torch.arange(0, 64, 2, dtype=torch.float64) / 64
    for row, base in enumerate((1e4, far, 1e4)):
        wanted = torch.cos(77 * base**-exponents)
        torch.testing.assert_close(cos[row].double(), wanted, rtol=0, atol=1e-5)
    assert not torch.equal(cos[0], cos[1]) and torch.equal(cos[0], cos[2])


def test_longrope_chooses_by_the_prompt():
    facts = RopeFacts("longrope", 1e4, 64, 256, 4.0, 64, short_factor=SHORT, long_factor=LONG)
    assert [facts.base_rule().for_prompt(n) for n in (64, 65)] == [0.0, 1.0]
    scale = math.sqrt(1 + math.log(4) / math.log(64))
    cos, _ = Rope(facts, "cpu")(torch.tensor([0.0, 1.0]), torch.tensor([3, 3]))
    for row, factors in enumerate((SHORT, LONG)):
        freqs = 1e4 ** -(torch.arange(32).double() / 32) / torch.tensor(factors).double()
        torch.testing.assert_close(cos[row].double(), torch.cos(3 * freqs) * scale, rtol=0, atol=1e-6)


def test_both_spellings_of_a_config_mean_the_same():
    P = {"max_position_embeddings": 128}
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "dynamic", "factor": 2.0}, **P}
    new = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e5}, **P}
    assert rope_facts(old, 64) == rope_facts(new, 64)
    assert rope_facts(old, 64).base_rule() == RopeBase("dynamic", 5e5, 2.0, 128, 64)


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"rope_type": "spiral"}, "rope type is 'spiral'"),
        ({"rope_type": "linear"}, "needs a factor"),
        ({"rope_type": "linear", "factor": -1.0}, "finite and positive"),
        ({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [1.0]}, "must have 32 numbers"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ],
)
def test_a_rotation_that_cannot_be_served_is_named(scaling, said):
    with pytest.raises(ConfigError, match=said):
        rope_facts({"rope_scaling": scaling, "max_position_embeddings": 128}, 64)
