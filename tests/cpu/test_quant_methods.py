"""Quantization methods against closed forms, plain re-statements of their papers, and transformers."""

import itertools
import math

import pytest
import torch
from tests.support.quantized import feed_of, streams, tiny_block

from tokenmill.errors import ConfigError, FormatError
from tokenmill.quant import search
from tokenmill.quant.block import SITES
from tokenmill.quant.grid import SEARCH_LEAST, SEARCH_STEPS, make_grid, round_to_grid, search_grid
from tokenmill.quant.method import load_method
from tokenmill.quant.methods import fp8, gptq, smoothquant
from tokenmill.quant.polish import PASSES, Places, polish
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.scaling import apply, moves
from tokenmill.quant.stats import Gram, gram, output_error
from tokenmill.weights.classes import Fp8Block, Int8Channel, IntGroup

G64 = Recipe(group=64)


def weights(n=48, m=128, seed=0, spread=0.05):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, m, generator=g) * spread


def inputs(m=128, tokens=512, seed=1):
    return torch.cat(streams(1, tokens, m, seed))


# ------------------------------------------------------------------ grids


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, None])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rounding_is_within_half_a_step(bits, group, symmetric):
    w = weights()
    grid = make_grid(w, Recipe(bits=bits, group=group, symmetric=symmetric))
    back = grid.weight(grid.codes(w)).dequantize()
    assert torch.equal(back, grid.nearest(w))
    step = grid.scales_NQ.repeat_interleave(w.shape[1] // grid.scales_NQ.shape[1], 1)
    # The zero is rounded too, so an end of the range may lie half a step outside; so may +max of a symmetric grid.
    assert ((back - w).abs() <= step * 1.001).all()
    inner = (grid.codes(w) > 0) & (grid.codes(w) < grid.top)
    assert ((back - w).abs()[inner] <= step[inner] * 0.5001).all()


@pytest.mark.parametrize("low, high", [(10.5, 14.0), (-14.0, -10.5), (0.0, 0.0), (1e-7, 2e-7)])
def test_groups_of_one_sign_keep_their_values(low, high):
    w = torch.linspace(low, high, 64)[None]
    for symmetric in (False, True):
        back = round_to_grid(w, Recipe(group=64, symmetric=symmetric))
        limit = max(abs(low), abs(high)) / (15 if not symmetric else 7) + 1e-5
        assert (back - w).abs().max() <= limit


def test_codes_fit_the_stored_scale():
    """w = (q - z) s with s as float16 stores it, not as it was computed."""
    w = weights(spread=0.0123)
    grid = make_grid(w, G64)
    assert torch.equal(grid.scales_NQ.half().float(), grid.scales_NQ)
    made = grid.weight(grid.codes(w))
    best = (made.unpacked().float()[:, :, None] + torch.tensor([-1.0, 0.0, 1.0])).clamp(0, 15)
    zeros, scales = (x.float().repeat_interleave(64, 1)[:, :, None] for x in (made.zeros, made.scales))
    errors = ((best - zeros) * scales - w[:, :, None]).abs()
    assert (errors[:, :, 1] <= errors.amin(2) + 1e-9).all()


def test_grids_refuse_what_they_cannot_hold():
    with pytest.raises(FormatError, match="not filled by groups of 48"):
        make_grid(weights(), Recipe(group=48))
    with pytest.raises(FormatError, match="need scales beyond"):
        make_grid(weights(spread=1e7), G64)
    with pytest.raises(ConfigError, match="5 is not served"):
        Recipe(bits=5)
    with pytest.raises(ConfigError, match="no 'magic'"):
        load_method("magic")


# ------------------------------------------------------------------ blocks


def test_the_block_is_the_references_layer(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    block = tiny_block(tmp_path, "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    assert torch.allclose(block.run(states[0][0]), states[1][0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "internlm2"])
def test_moving_scales_changes_nothing(tmp_path, family):
    block = tiny_block(tmp_path, family)
    before = [block.run(x) for x in streams(2)]
    found = moves(block.facts)
    assert [move.site for move in found] == list(SITES)
    g = torch.Generator().manual_seed(3)
    for move in found:
        scales = torch.rand(block.linears[move.linears[0]].shape[1], generator=g) * 4 + 0.2
        if move.site == "out":
            a = block.facts.arch.attention
            shared = scales.view(a.num_kv_heads, -1, a.head_dim)[:, :1]
            scales = shared.expand(-1, a.num_heads // a.num_kv_heads, -1).reshape(-1)
        held = dict(block.linears)
        apply(block, move, scales)
        assert not torch.equal(held[move.linears[0]], block.linears[move.linears[0]])
    for x, y in zip(streams(2), before, strict=True):
        assert torch.allclose(block.run(x), y, atol=1e-3, rtol=1e-4)


def test_a_norm_rounded_to_bfloat16_still_changes_nothing(tmp_path):
    block = tiny_block(tmp_path)
    block.stored = torch.bfloat16
    before = block.run(streams(1)[0])
    move = moves(block.facts)[0]
    apply(block, move, torch.rand(128, generator=torch.Generator().manual_seed(2)) * 4 + 0.2)
    norm = block.vectors[f"{move.source}.weight"]
    assert torch.equal(norm.bfloat16().float(), norm)
    assert torch.allclose(block.run(streams(1)[0]), before, atol=1e-3, rtol=1e-4)


# ------------------------------------------------------------------ GPTQ


def plain_gptq(w, gram_MM, recipe):
    """The paper's algorithm 1 without batches: one column at a time, the inverse Hessian eliminated as it goes."""
    w, m = w.double().clone(), w.shape[1]
    damped = gram_MM.double()
    damped = damped + recipe.damp_frac * damped.diagonal().mean() * torch.eye(m, dtype=torch.float64)
    size, importance = recipe.group or m, gram_MM.diagonal().tolist()
    order = sorted(range(m), key=lambda j: -importance[j])
    if recipe.order == "none":
        order = range(m)
    if recipe.order == "group":
        loudest = [max(importance[q * size : (q + 1) * size]) for q in range(m // size)]
        order = sorted(range(m), key=lambda j: (-loudest[j // size], j // size, -importance[j]))
    inverse, grid, codes = torch.linalg.inv(damped), make_grid(w.float(), recipe), torch.zeros_like(w)
    for step, j in enumerate(order):
        if recipe.order != "act" and step % size == 0:
            group = j // size
            fresh = make_grid(w[:, group * size : (group + 1) * size].float(), recipe)
            grid.scales_NQ[:, group], grid.zeros_NQ[:, group] = fresh.scales_NQ[:, 0], fresh.zeros_NQ[:, 0]
        scale, zero = (x.double() for x in grid.column(j))
        codes[:, j] = (torch.round(w[:, j] / scale) + zero).clamp(0, grid.top)
        error = (w[:, j] - (codes[:, j] - zero) * scale) / inverse[j, j]
        w -= error[:, None] * inverse[j]
        inverse -= torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes, grid


@pytest.mark.parametrize("order", ["act", "group", "none"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 48, 192, None])
def test_gptq_is_the_papers_algorithm(order, symmetric, group):
    recipe = Recipe(group=group, order=order, symmetric=symmetric)
    w = weights(16, 384)
    grams = gram([inputs(384, 1024)], 384)
    made = gptq.solve(w, gptq.Hessian(grams, recipe, "x"), recipe)
    codes, grid = plain_gptq(w, grams, recipe)
    # fp32 against fp64: a value on the border of two codes may fall either way, and moves what follows a little.
    assert (made.unpacked() == codes).float().mean() > 0.99
    ours = output_error(made.dequantize() - w, grams).sum()
    theirs = output_error(grid.weight(codes).dequantize() - w, grams).sum()
    assert abs(ours / theirs - 1) < 0.01


@pytest.mark.parametrize("recipe", [G64, Recipe(group=64, order="none"), Recipe(group=64, order="group"),
                                    Recipe(group=64, bits=3), Recipe(group=None, bits=8),
                                    Recipe(group=64, symmetric=True)])  # fmt: skip
def test_gptq_beats_rounding_on_its_objective(recipe):
    w, grams = weights(64), gram([inputs()], 128)
    made = gptq.solve(w, gptq.Hessian(grams, recipe, "x"), recipe)
    ours = output_error(made.dequantize() - w, grams).sum()
    nearest = output_error(round_to_grid(w, recipe) - w, grams).sum()
    assert ours < 0.8 * nearest


REFINED = Recipe(group=64, refine=True)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_refining_lowers_gptqs_objective(bits, symmetric):
    grams, errors = gram([inputs()], 128), []
    for refine in (False, True):
        recipe = Recipe(group=64, bits=bits, symmetric=symmetric, refine=refine)
        made = gptq.solve(weights(64), gptq.Hessian(grams, recipe, "x"), recipe)
        errors.append(output_error(made.dequantize() - weights(64), grams).sum())
    assert errors[1] < 0.97 * errors[0], errors


def test_the_searched_grid_is_the_best_of_its_shrinks():
    """Row by row and group by group, against a loop in fp64."""
    w, importance = weights(6), torch.rand(128, generator=torch.Generator().manual_seed(3)) + 0.1
    found = search_grid(w, importance, G64).nearest(w)
    for row, group in itertools.product(range(6), range(2)):
        part, weigh = w[row, group * 64 : (group + 1) * 64], importance[group * 64 : (group + 1) * 64].double()
        least = math.inf
        for step in range(SEARCH_STEPS):
            shrink = 1 - (1 - SEARCH_LEAST) * step / (SEARCH_STEPS - 1)
            low, high = float(part.min().clamp(max=0)) * shrink, float(part.max().clamp(min=0)) * shrink
            scale = float(torch.tensor((high - low) / 15).half())
            zero = min(max(round(-low / scale), 0), 15)
            value = ((part / scale).round() + zero).clamp(0, 15).double().sub(zero) * scale
            least = min(least, float(((value - part.double()).square() * weigh).sum()))
        ours = (found[row, group * 64 : (group + 1) * 64].double() - part.double()).square()
        assert float((ours * weigh).sum()) <= least * 1.001


def test_polished_codes_are_the_best_one_by_one():
    """Each move is the best of all codes of that column, by the whole objective in fp64; the last pass moves little."""
    w, grams = weights(8), gram([inputs()], 128)
    grid = make_grid(w, G64)
    places = Places(*(part.expand_as(w) for part in grid.spread(128)), grid.top)
    start = grid.codes(w)
    ours = polish(start, places, w, grams)
    codes, slow = start.double(), grams.double()
    for _, j in itertools.product(range(PASSES), range(128)):
        tried = codes.repeat(16, 1, 1)
        tried[:, :, j] = torch.arange(16, dtype=torch.float64)[:, None]
        delta = (tried - grid.spread(128)[1]) * grid.spread(128)[0] - w
        codes[:, j] = torch.einsum("cnm,mk,cnk->cn", delta, slow, delta).argmin(0).double()
    assert (ours == codes).float().mean() > 0.99
    before, after = (output_error(places.values(c) - w, grams) for c in (start, ours))
    assert bool((after <= before * 1.0001).all()) and after.sum() < 0.7 * before.sum()


def test_the_aim_is_the_least_squares_answer():
    """Weights that make up for drifted inputs, against torch's solver on the stacked ridge problem in fp64."""
    plain, w = inputs(64, 400), weights(5, 64)
    seen = plain + 0.1 * torch.randn(400, 64, generator=torch.Generator().manual_seed(5))
    grams = gram([seen], 64)
    hessian = gptq.Hessian(grams, REFINED, "x")
    ours = hessian.aim(w, (plain - seen).T @ seen / len(seen))
    # Ridge around w itself: min |seen (w + d) - plain w|^2 / T + damping |d|^2.
    damping = (REFINED.damp_frac * grams.diagonal().mean()).double()
    a = torch.cat([seen.double() / 400**0.5, damping.sqrt() * torch.eye(64, dtype=torch.float64)])
    b = torch.cat([(plain - seen).double() @ w.double().T / 400**0.5, torch.zeros(64, 5, dtype=torch.float64)])
    wanted = w.double() + torch.linalg.lstsq(a, b).solution.T
    assert torch.allclose(ours.double(), wanted, atol=2e-3 * float(wanted.abs().max()))


def test_drift_is_a_mean_over_tokens_and_shrinks_with_few(folder):
    """The mean of (p - q) q^T, times 1 - in-features / tokens."""
    block, plain = tiny_block(folder), tiny_block(folder)
    aims, seen = streams(4, 64), streams(4, 64, seed=7)
    found = gptq.site_drift("qkv", (plain, aims), (block, seen))
    p, q = (torch.cat([block.site_input("qkv", x) for x in made]).double() for made in (aims, seen))
    assert torch.allclose(found.double(), (p - q).T @ q / 256 * (1 - 128 / 256), atol=1e-5)
    assert not bool(gptq.site_drift("qkv", (plain, aims[:2]), (block, seen[:2])).any())


def test_gptq_with_uncorrelated_inputs_is_rounding():
    """Closed form: with H a multiple of one, nothing can be compensated."""
    w = weights()
    made = gptq.solve(w, gptq.Hessian(torch.eye(128) * 3.0, G64, "x"), G64)
    assert torch.equal(made.dequantize(), round_to_grid(w, G64))


def test_dead_columns_are_zeroed_and_harmless():
    w, x = weights(), inputs()
    x[:, [3, 90]] = 0
    grams = gram([x], 128)
    made = gptq.solve(w, gptq.Hessian(grams, G64, "x"), G64).dequantize()
    assert (made[:, [3, 90]] == 0).all() and torch.isfinite(made).all()


def test_a_singular_hessian_is_damped_until_it_can_be_inverted(caplog):
    """Smallest eigenvalue -0.025 beside a diagonal of nearly one: 0.01 and 0.02 are too little, 0.03 is enough."""
    v = torch.nn.functional.normalize(torch.randn(128, generator=torch.Generator().manual_seed(0)), dim=0)
    assert torch.isfinite(gptq.Hessian(torch.eye(128) - 1.025 * torch.outer(v, v), G64, "layer.q").upper).all()
    assert "layer.q: damping 0.02 is too little, trying 0.03" in caplog.text and "trying 0.04" not in caplog.text
    with pytest.raises(FormatError, match=r"layer.q: no damping up to 0.5"):
        gptq.Hessian(torch.eye(128) - 2 * torch.outer(v, v), G64, "layer.q")


def test_nan_in_calibration_names_the_linear():
    x = inputs()
    x[4, 7] = torch.nan
    with pytest.raises(FormatError, match=r"layer.q: the inputs hold NaN"):
        gptq.Hessian(gram([x], 128), G64, "layer.q")


def test_an_empty_calibration_set_is_said():
    with pytest.raises(ConfigError, match="calibration set is empty"):
        Gram(8).mean()


# ------------------------------------------------------------------ whole methods


def output_mse(block, quantized, made):
    return sum(float((quantized.run(x) - block.run(x)).square().mean()) for x in made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def errors(folder):
    """Error of the block's output on held-out streams, by method, weights with std like a trained model's."""
    found = {}
    for name in ("rtn", "awq", "gptq", "awq+gptq"):
        reference, block = tiny_block(folder), tiny_block(folder)
        made = load_method(name).quantize(block, feed_of(streams(6)), Recipe(group=64, search_tokens=256))
        assert made.keys() == block.linears.keys()
        assert all(isinstance(w, IntGroup) and torch.equal(w.dequantize(), block.linears[n]) for n, w in made.items())
        found[name] = output_mse(reference, block, streams(4, seed=0)[2:])
    return found


def test_awq_and_gptq_beat_rounding_and_together_beat_both(errors):
    assert errors["awq"] < 0.8 * errors["rtn"]
    assert errors["gptq"] < 0.8 * errors["rtn"]
    assert errors["awq+gptq"] < min(errors["awq"], errors["gptq"])


def slow_awq_scale(block, move, made, recipe):
    """The search of one norm's scale, stated plainly: token by token statistics, whole modules, every candidate."""
    x = torch.cat([block.site_input(move.site, residual) for residual in made])
    a = x.abs().mean(0)
    joined = torch.cat([block.linears[name] for name in move.linears]).abs()
    largest = joined.view(len(joined), -1, recipe.group).amax(2).repeat_interleave(recipe.group, 1)
    w = (joined / (largest + 1e-6)).mean(0)
    best = None
    for duo in (False, True):
        for i in range(recipe.ratios):
            r = i / recipe.ratios
            s = (a**r / (w ** (1 - r) + 1e-4) if duo else a**r).clamp(min=1e-4)
            s = s / (s.max() * s.min()).sqrt()
            held = dict(block.linears)
            module = block.attention_out if move.site == "qkv" else block.mlp_out
            wanted = [module(block.site_input(move.site, residual)) for residual in made]
            for name in move.linears:
                block.linears[name] = round_to_grid(held[name] * s, recipe) / s
            got = [module(block.site_input(move.site, residual)) for residual in made]
            block.linears = held
            loss = sum(float((g - y).square().sum()) for g, y in zip(got, wanted, strict=True))
            if best is None or loss < best[0]:
                best = loss, s
    return best[1]


def test_the_scale_search_is_the_plain_one(folder):
    block, made = tiny_block(folder), streams(3)
    found = search.search_scales(block, feed_of(made), Recipe(group=64, search_tokens=10**6, ratios=8))
    qkv = next(move for move in found if move.site == "qkv")
    assert torch.allclose(found[qkv], slow_awq_scale(block, qkv, made, Recipe(group=64, ratios=8)), rtol=1e-4)


def test_heads_that_share_values_share_the_scale(folder):
    block = tiny_block(folder)
    a = block.facts.arch.attention
    assert a.num_heads > a.num_kv_heads
    found = search.search_scales(block, feed_of(streams(3)), Recipe(group=64, ratios=5))
    out = next(scales for move, scales in found.items() if move.site == "out")
    by_head = out.view(a.num_kv_heads, -1, a.head_dim)
    assert torch.equal(by_head, by_head[:, :1].expand_as(by_head)) and out.std() > 0


def test_the_clip_is_the_best_of_its_grid():
    """Against a search over tokens, row by row and group by group."""
    w, x = weights(6, 128), inputs(128, 200)
    w[:, ::17] *= 6
    got = search.clip_weight(w, search.group_grams([x], 64), G64)
    for row in range(6):
        for q in range(2):
            part, cols = w[row, q * 64 : q * 64 + 64][None], x[:, q * 64 : q * 64 + 64]
            losses = []
            for step in range(10):
                limit = (1 - step / 20) * part.abs().max()
                clipped = part.clamp(-limit, limit)
                losses.append(((cols @ (round_to_grid(clipped, G64) - part).T).square().mean().item(), clipped))
            best = min(losses, key=lambda item: item[0])[1]
            assert torch.allclose(got[row, q * 64 : q * 64 + 64], best[0], atol=1e-6)
    assert not torch.equal(got, w)


def test_smoothquant_moves_outliers_and_lowers_the_error(folder):
    found = {}
    for smooth in (True, False):
        reference, block = tiny_block(folder), tiny_block(folder)
        if smooth:
            made = load_method("smoothquant").quantize(block, feed_of(streams(4)), Recipe())
            assert all(isinstance(w, Int8Channel) for w in made.values())
        else:
            block.linears = {n: smoothquant.by_channel(w).dequantize() for n, w in block.linears.items()}
        total = 0.0
        for x in streams(2):
            for site in ("qkv", "gate_up"):
                a, b = reference.site_input(site, x), smoothquant.by_token(block.site_input(site, x))
                for name in block.facts.names(site):
                    total += float((b @ block.linears[name].T - a @ reference.linears[name].T).square().mean())
        found[smooth] = total
    assert found[True] < 0.5 * found[False]


@pytest.mark.parametrize("kind", ["tensor", "channel", "block"])
@pytest.mark.parametrize("shape", [(128, 256), (40, 200)])
def test_fp8_is_within_half_a_step_of_its_mantissa(kind, shape):
    w = weights(*shape)
    w[3] *= 50
    made = fp8.make(w, Recipe(fp8=kind, block=(32, 64)))
    back, scale = made.dequantize(), made.scales
    assert made.codes.float().abs().max() == 448.0
    # e4m3: 3 bits of mantissa, so 2^-4 relative; below 2^-6 of the scale steps are 2^-9.
    step = scale.repeat_interleave(32, 0).repeat_interleave(64, 1)[: shape[0], : shape[1]] if kind == "block" else scale
    assert ((back - w).abs() <= torch.maximum(w.abs() * 2**-4, step * 2**-10) * 1.001).all()
    assert isinstance(made, Fp8Block) == (kind == "block")
