"""Every family on a random checkpoint of its own form against transformers (or what equals its authors' code there)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.support.beside import parity

from tokenmill.api.scoring import reward
from tokenmill.config import EngineConfig, ModelConfig, SchedulerConfig
from tokenmill.engine.client import start_engine
from tokenmill.errors import ConfigError, RequestError
from tokenmill.kv.layout import kind_of
from tokenmill.layers.attention import alibi_slopes
from tokenmill.models.build import ModelBuild, build_model
from tokenmill.models.parity import LIMIT, Probe, check_parity
from tokenmill.models.solo import Solo
from tokenmill.models.spec import families, find_family, read_arch, read_config, read_spec
from tokenmill.models.tiny import make_tiny
from tokenmill.models.twin import build_twin, load_twin, plain_tensors
from tokenmill.quant.block import block_facts, read_block
from tokenmill.types import Request, Sampling, Stop, Want
from tokenmill.weights.source import open_source

# Long enough to pass every tiny config's window, trained length and rope threshold of 64.
TOKENS = 100
NOT_IN_TRANSFORMERS = {"qwen"}


def reference_of(folder: Path, **changes: object) -> object:
    family, arch = read_arch(folder)
    tensors = plain_tensors(family, arch, open_source(folder))
    raw = read_config(folder)
    assert family.twin is not None
    return build_twin({**family.twin.config(raw), **changes}, family.twin.tensors(tensors, raw))


def our_logits(folder: Path, ids_T: torch.Tensor, chunk: int) -> torch.Tensor:
    return Solo(build_model(folder, ModelBuild()), len(ids_T)).logits(ids_T, chunk)


def random_ids(count: int) -> torch.Tensor:
    return torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", sorted(set(families()) - NOT_IN_TRANSFORMERS))
def test_family_equals_transformers(family: str, tmp_path: Path) -> None:
    report = parity(make_tiny(family, tmp_path / family), TOKENS)
    assert report.ok, str(report)


def test_a_family_that_transformers_lacks_is_said_in_words() -> None:
    with pytest.raises(ConfigError, match="transformers .* knows no nonsense: install"):
        build_twin({"model_type": "nonsense"}, {})


def test_every_published_architecture_finds_its_family() -> None:
    wanted = {
        "InternLMForCausalLM": "internlm", "InternLM2ForCausalLM": "internlm2", "InternLM3ForCausalLM": "internlm3",
        "LlamaForCausalLM": "llama", "QWenLMHeadModel": "qwen", "Qwen2ForCausalLM": "qwen2",
        "Qwen3ForCausalLM": "qwen3", "MistralForCausalLM": "mistral", "BaichuanForCausalLM": "baichuan",
        "BaiChuanForCausalLM": "baichuan_v1", "Phi3ForCausalLM": "phi3", "MixtralForCausalLM": "mixtral",
        "Qwen2MoeForCausalLM": "qwen2_moe", "Qwen3MoeForCausalLM": "qwen3_moe",
        "DeepseekV2ForCausalLM": "deepseek_v2", "DeepseekV3ForCausalLM": "deepseek_v3",
        "GemmaForCausalLM": "gemma", "Gemma2ForCausalLM": "gemma2", "Gemma3ForCausalLM": "gemma3",
        "GptOssForCausalLM": "gpt_oss", "InternLM2ForRewardModel": "internlm2_reward",
        "Qwen2ForRewardModel": "qwen2_reward", "GlmForCausalLM": "glm", "Glm4ForCausalLM": "glm4",
        "ChatGLMModel": "chatglm", "ChatGLMForConditionalGeneration": "chatglm",
    }  # fmt: skip
    assert {name: find_family({"architectures": [name]}).name for name in wanted} == wanted


def test_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'Qwen2ForCausalLMX' is not served; the nearest is Qwen2ForCausalLM"):
        find_family({"architectures": ["Qwen2ForCausalLMX"]})


def test_qwen_v1_up_to_its_trained_length(tmp_path: Path) -> None:
    folder = make_tiny("qwen", tmp_path / "qwen")
    ids_T = random_ids(64)
    theirs = reference_of(folder)(ids_T[None]).logits[0]
    assert (our_logits(folder, ids_T, 7) - theirs).abs().max() < LIMIT * 5


def test_qwen_v1_past_its_trained_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NTK and LogN put into transformers' Qwen2 by hand, from the formulas of the authors' code."""
    from transformers.models.qwen2 import modeling_qwen2

    folder, trained, head_dim = make_tiny("qwen", tmp_path / "qwen"), 64, 32
    ids_T = random_ids(TOKENS)
    alpha = max(2 ** math.ceil(math.log2(TOKENS / trained) + 1) - 1, 1)
    assert alpha == 3
    plain = modeling_qwen2.apply_rotary_pos_emb
    places_T = torch.arange(1, TOKENS + 1).float()
    logn_T = torch.where(places_T > trained, places_T.log() / math.log(trained), torch.ones(()))

    def with_logn(q: torch.Tensor, k: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = plain(q, k, *rest)
        return q * logn_T[:, None], k

    monkeypatch.setattr(modeling_qwen2, "apply_rotary_pos_emb", with_logn)
    theirs = reference_of(folder, rope_theta=10000.0 * alpha ** (head_dim / (head_dim - 2)))(ids_T[None]).logits[0]
    for chunk in (TOKENS, 7):
        assert (our_logits(folder, ids_T, chunk) - theirs).abs().max() < LIMIT * 5


def test_qwen_v1_reads_the_keys_of_its_first_release() -> None:
    new = dict(families()["qwen"].tiny)
    old_names = {"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
                 "max_position_embeddings": "n_positions", "intermediate_size": "ffn_hidden_size",
                 "vocab_size": "padded_vocab_size"}  # fmt: skip
    old = {old_names.get(key, key): value for key, value in new.items()}
    assert read_spec(old) == read_spec(new)


def test_alibi_slopes_of_forty_heads() -> None:
    slopes = alibi_slopes(40)
    golden = {0: 0.840896, 31: 0.00390625, 32: 0.917004, 39: 0.272627}
    assert {i: round(float(slopes[i]), 6) for i in golden} == {i: round(x, 6) for i, x in golden.items()}


def test_baichuan_13b_has_alibi_and_no_rotation(tmp_path: Path) -> None:
    """transformers' Llama, its rotation stopped and the biases given as a mask."""
    overrides = {"max_position_embeddings": None, "model_max_length": 128, "num_attention_heads": 4}
    folder = make_tiny("baichuan", tmp_path / "baichuan", overrides=overrides)
    ids_T = random_ids(TOKENS)
    twin = reference_of(folder, max_position_embeddings=128)
    twin.model.rotary_emb.inv_freq.zero_()
    ahead_TT = torch.arange(TOKENS) - torch.arange(TOKENS)[:, None]
    slopes_H = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])
    bias = (slopes_H[:, None, None] * ahead_TT).masked_fill(ahead_TT > 0, -math.inf)
    theirs = twin(ids_T[None], attention_mask=bias[None]).logits[0]
    for chunk in (TOKENS, 7):
        assert (our_logits(folder, ids_T, chunk) - theirs).abs().max() < LIMIT * 5


@pytest.mark.parametrize("family", ["internlm2_reward", "qwen2_reward"])
async def test_a_reward_model_scores_through_the_engine_and_writes_nothing(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / family)
    config = EngineConfig(
        model=ModelConfig(path=str(folder), dtype="float32"), scheduler=SchedulerConfig(max_rows=4, max_step_tokens=16)
    )
    engine = await start_engine("tokenmill.runner.runner:make_runner", config, own_process=False)
    try:
        prompts = [tuple(random_ids(n).tolist()) for n in (20, 41, 1)]
        scores = [await reward(engine, ids) for ids in prompts]
        with pytest.raises(RequestError, match="it scores a prompt"):
            await engine.score(Request("text", prompts[0], Sampling(temperature=0.0), Stop(max_new_tokens=1)))
        with pytest.raises(RequestError, match="it scores a prompt"):
            await engine.score(Request("logits", prompts[0], Sampling(), Stop(max_new_tokens=0), want=Want.LOGITS))
    finally:
        await engine.close()
    twin = load_twin(folder)
    for ids, score in zip(prompts, scores, strict=True):
        assert score == pytest.approx(float(twin(torch.tensor([ids])).logits.detach()), abs=1e-3)


@pytest.mark.parametrize("family", ["glm", "chatglm"])
def test_calibration_turns_heads_as_the_model_does(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / family)
    record, arch = read_arch(folder)
    facts, source, ids_T = block_facts(record, arch), open_source(folder), random_ids(40)
    x_SD = source.tensor(f"{record.names.embedding}.weight")[ids_T]
    for index in range(arch.num_layers):
        x_SD = read_block(facts, source, index).run(x_SD)
    model = build_model(folder)
    theirs = dict(model.stages(ids_T, Solo(model, 40).rows(40), Solo(model, 40).caches))[f"layer {index} mlp"]
    assert float((x_SD - theirs).abs().max()) < LIMIT * 10


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v2", "gemma2", "glm4"])
def test_calibration_refuses_layers_that_it_cannot_run(family: str) -> None:
    record, arch = read_arch(families()[family].tiny)
    with pytest.raises(ConfigError, match=f"not the layers of {family}"):
        block_facts(record, arch)


def test_windows_only_where_the_config_uses_them() -> None:
    tiny = families()["qwen2"].tiny
    assert [g.window_tokens for g in read_spec(tiny).groups] == [None]
    late = {**tiny, "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
    assert [(g.layers, g.window_tokens) for g in read_spec(late).groups] == [((0,), None), ((1,), 32)]


def test_full_and_window_layers_in_one_model(tmp_path: Path) -> None:
    overrides = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1,
                 "layer_types": ["full_attention", "sliding_attention"]}  # fmt: skip
    report = check_parity(make_tiny("qwen2", tmp_path / "hybrid", overrides=overrides), Probe(tokens=TOKENS))
    assert report.ok, str(report)


def test_internlm_v1_with_and_without_biases_and_rotary_key(tmp_path: Path) -> None:
    plain = make_tiny("internlm", tmp_path / "plain", overrides={"bias": False, "rotary": None})
    assert read_spec(plain).rope is None
    assert check_parity(plain, Probe(tokens=TOKENS)).ok
    longer = ModelConfig(rope_scaling_factor=2.0)
    assert read_spec(plain, longer).rope is not None


VARIANTS = {
    "V2-Lite": ("deepseek_v2", {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
                                "routed_scaling_factor": 1.0}),
    "V2 with biases, not stretched": ("deepseek_v2", {"attention_bias": True, "rope_scaling": None}),
    "no layer dense": ("deepseek_v2", {"first_k_dense_replace": 0}),
    "windowed experts": ("mixtral", {"sliding_window": 32}),
    "normalised, with a shared expert": ("qwen2_moe", {"norm_topk_prob": True, "decoder_sparse_step": 1}),
    "Gemma 3 as transformers 5 writes it": ("gemma3", {
        "rope_scaling": None, "rope_theta": None, "rope_local_base_freq": None, "sliding_window_pattern": None,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "not normalised": ("qwen3_moe", {"norm_topk_prob": False, "mlp_only_layers": []}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_published_variants_equal_transformers(name: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[name]
    report = check_parity(make_tiny(family, tmp_path / "variant", overrides=overrides), Probe(tokens=TOKENS))
    assert report.ok, str(report)


def test_a_latent_cache_is_small_and_keeps_its_kind(tmp_path: Path) -> None:
    """DeepSeek-V2: 512 + 64 numbers a token and layer, as its paper states, not 128 heads of 192 and 128."""
    spec = read_spec({**families()["deepseek_v2"].tiny, "kv_lora_rank": 512, "qk_rope_head_dim": 64})
    kind = kind_of(spec.latent, "auto")
    assert kind.bytes_per_token(spec.num_kv_heads, spec.head_dim, 2) == 2 * (512 + 64)
    with pytest.raises(ConfigError, match="latent"):
        kind_of(spec.latent, "int8")


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "mixtral", "deepseek_v3", "gemma3", "gpt_oss"])
async def test_greedy_answers_through_the_engine(family: str, tmp_path: Path) -> None:
    """Chunks of 16 tokens, several rows at once, blocks behind windows given back: still what transformers says."""
    folder = make_tiny(family, tmp_path / family)
    config = EngineConfig(
        model=ModelConfig(path=str(folder), dtype="float32"), scheduler=SchedulerConfig(max_rows=4, max_step_tokens=16)
    )
    engine = await start_engine("tokenmill.runner.runner:make_runner", config, own_process=False)
    try:
        prompts = [tuple(random_ids(n).tolist()) for n in (20, 41, 70)]
        greedy, stop = Sampling(temperature=0.0), Stop(max_new_tokens=24)
        outputs = [await engine.score(Request(f"r{i}", ids, greedy, stop)) for i, ids in enumerate(prompts)]
    finally:
        await engine.close()
    twin = load_twin(folder)
    for ids, output in zip(prompts, outputs, strict=True):
        best = twin(torch.tensor([[*ids, *output.token_ids]])).logits[0].argmax(-1)[len(ids) - 1 : -1]
        assert output.token_ids == tuple(best.tolist())
